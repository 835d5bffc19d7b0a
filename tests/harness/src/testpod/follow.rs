//! Following a change: connections one after the other, until one ends as it should from now on.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::client;
use super::protocol::{Follow, Followed, Outcome};
use crate::sys::monotonic;

/// Tries until somebody answers, or nobody does any more.
pub(super) fn follow(change: &Follow) -> Result<Followed> {
    let (start, within) = (Instant::now(), Duration::from_millis(change.within));
    let mut tries = 0;
    loop {
        tries += 1;
        let answer = client::ask(&change.ask);
        let reached = matches!(answer.outcome, Outcome::Served | Outcome::Status(_));
        if reached == change.reached {
            return Ok(Followed { at: u64::try_from(monotonic().as_nanos())?, tries });
        }
        if start.elapsed() >= within {
            bail!("{}: {:?} even after {within:?}, {tries} tries", change.ask.target, answer.outcome);
        }
        std::thread::sleep(Duration::from_micros(change.gap));
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};

    use super::super::protocol::{Ask, Kind};
    use super::super::server::Servers;
    use super::*;

    #[test]
    fn a_change_is_followed_in_both_directions_or_given_up() {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
        let follow = |reached, target: SocketAddr| {
            let ask = Ask { patience: 500, ..Ask::new(Kind::Tcp, target) };
            super::follow(&Follow { ask, reached, gap: 200, within: 60 })
        };
        assert_eq!(follow(false, free).unwrap().tries, 1);
        assert!(follow(true, free).unwrap_err().to_string().contains("Refused"));
        Servers::new("here").listen(Kind::Tcp, free.port()).unwrap();
        let before = monotonic().as_nanos();
        let found = follow(true, free).unwrap();
        assert!(found.tries == 1 && u128::from(found.at) > before);
        assert!(follow(false, free).unwrap_err().to_string().contains("Served"));
    }
}
