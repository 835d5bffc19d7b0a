//! The decisions, on the host.

mod cases;
mod property;

use sheave_abi::Address;

use crate::Place;

/// 10.0.`kind`.`n`, or the IPv6 counterpart.
fn place(kind: u8, n: u8, v4: bool) -> Place {
    let address = if v4 {
        Address::from_v4([10, 0, kind, n])
    } else {
        Address([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, kind, n])
    };
    Place { address, port: [0, 80] }
}
