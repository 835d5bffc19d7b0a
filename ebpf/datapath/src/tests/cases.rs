//! One claim each, by hand.

use std::collections::BTreeMap;
use std::vec::Vec;

use sheave_abi::{Counter, FRONTEND_LISTENER, FRONTEND_NODE_ONLY, FrontendRow};

use super::place;
use crate::fake::Fake;
use crate::{Transport, Verdict, connect, getpeername, recvmsg, sendmsg};

#[test]
fn chance_is_fair() {
    let (io, to) = (Fake::default(), place(0, 1, true));
    let set: Vec<_> = (0..7).map(|n| place(1, n, true)).collect();
    io.serve(&to, Transport::Tcp, 1, &set, 0);
    let mut hits = BTreeMap::new();
    for cookie in 0..70_000 {
        io.caller.set(cookie);
        let Verdict::Translate(backend) = connect(&io, Transport::Tcp, to) else { panic!("not translated") };
        *hits.entry(backend).or_insert(0u32) += 1;
    }
    assert_eq!(hits.len(), 7);
    // Ten thousand each; a fair coin strays by more than 5 standard deviations (93) once in two million.
    assert!(hits.values().all(|hits| hits.abs_diff(10_000) < 465), "{hits:?}");
    assert_eq!(io.targets.borrow()[&1], 70_000);
    assert_eq!(io.counter(Counter::TcpV4), 70_000);
}

#[test]
fn a_row_that_was_read_before_a_swap_is_read_again_once() {
    let (io, to) = (Fake::default(), place(0, 1, true));
    let old = FrontendRow { target: 1, generation: 77, count: 3, flags: 0 };
    io.serve(&to, Transport::Tcp, 1, &[place(1, 1, true)], 0);
    io.stale.borrow_mut().push(old);
    assert_eq!(connect(&io, Transport::Tcp, to), Verdict::Translate(place(1, 1, true)));
    assert_eq!(io.counter(Counter::Missed), 0);

    io.stale.borrow_mut().extend([old, old]);
    assert_eq!(connect(&io, Transport::Tcp, to), Verdict::Untouched, "the packet path finds somebody");
    assert_eq!(io.counter(Counter::Missed), 1);

    io.serve(&to, Transport::Tcp, 1, &[], 0);
    io.stale.borrow_mut().push(old);
    assert_eq!(connect(&io, Transport::Tcp, to), Verdict::Refuse, "the last endpoint went meanwhile");
}

#[test]
fn listeners_own_sockets_and_other_namespaces_loopback_are_left_alone() {
    let (io, to) = (Fake::default(), place(0, 1, true));
    let backend = place(1, 1, true);
    io.serve(&to, Transport::Udp, 1, &[backend], FRONTEND_LISTENER);
    assert_eq!(connect(&io, Transport::Udp, to), Verdict::Untouched);
    assert_eq!(sendmsg(&io, to), Verdict::Untouched);
    assert_eq!(io.counter(Counter::Listener), 2);

    io.serve(&to, Transport::Udp, 1, &[backend], FRONTEND_NODE_ONLY);
    assert_eq!(sendmsg(&io, to), Verdict::Untouched);
    io.caller_on_node.set(true);
    io.caller_on_loopback.set(true);
    assert_eq!(sendmsg(&io, to), Verdict::Untouched, "from 127.0.0.1 no pod is reached");
    io.caller_on_loopback.set(false);
    assert_eq!(sendmsg(&io, to), Verdict::Translate(backend));
    io.caller_is_own.set(true);
    assert_eq!(sendmsg(&io, to), Verdict::Untouched);
    assert_eq!(connect(&io, Transport::Udp, to), Verdict::Untouched);
}

#[test]
fn without_memory_to_remember_by_nothing_is_translated() {
    let (io, to) = (Fake::default(), place(0, 1, true));
    io.serve(&to, Transport::Udp, 1, &[place(1, 1, true)], 0);
    io.no_memory.set(true);
    assert_eq!(connect(&io, Transport::Udp, to), Verdict::Untouched);
    assert_eq!(sendmsg(&io, to), Verdict::Untouched);
    assert_eq!((io.counter(Counter::Untracked), io.counter(Counter::UdpV4)), (2, 0));
    assert!(io.targets.borrow().is_empty());
}

#[test]
fn a_socket_that_connects_elsewhere_is_not_disguised() {
    let (io, to) = (Fake::default(), place(0, 1, true));
    let backend = place(1, 1, true);
    let other = place(1, 2, true);
    for transport in [Transport::Tcp, Transport::Udp] {
        io.serve(&to, transport, 1, &[backend], 0);
        connect(&io, transport, to);
        assert_eq!(getpeername(&io, transport, backend), Verdict::Translate(to));
        connect(&io, transport, other);
        assert_eq!(getpeername(&io, transport, other), Verdict::Untouched);
    }
    connect(&io, Transport::Udp, backend);
    assert_eq!(getpeername(&io, Transport::Udp, backend), Verdict::Untouched);
}

#[test]
fn a_socket_that_sends_to_two_frontends_of_two_backends_uses_both() {
    let (io, one, two) = (Fake::default(), place(0, 1, true), place(0, 2, true));
    let set = [place(1, 1, true), place(1, 2, true)];
    io.serve(&one, Transport::Udp, 1, &set, 0);
    io.serve(&two, Transport::Udp, 2, &set, 0);
    for cookie in 0..100 {
        io.caller.set(cookie);
        let (Verdict::Translate(a), Verdict::Translate(b)) = (sendmsg(&io, one), sendmsg(&io, two)) else {
            panic!("not translated")
        };
        assert_ne!(a, b);
        assert_eq!((recvmsg(&io, a), recvmsg(&io, b)), (Verdict::Translate(one), Verdict::Translate(two)));
    }
}

#[test]
fn a_connected_sockets_datagrams_that_name_the_frontend_keep_one_backend_after_its_own_went() {
    let (io, to) = (Fake::default(), place(0, 1, true));
    let set: Vec<_> = (1..=8).map(|n| place(1, n, true)).collect();
    io.serve(&to, Transport::Udp, 1, &set, 0);
    let Verdict::Translate(first) = connect(&io, Transport::Udp, to) else { panic!("not translated") };
    let left: Vec<_> = set.into_iter().filter(|backend| *backend != first).collect();
    io.serve(&to, Transport::Udp, 1, &left, 0);
    let second = sendmsg(&io, to);
    assert!((0..50).all(|_| sendmsg(&io, to) == second), "each datagram chose anew");
    let Verdict::Translate(second) = second else { panic!("not translated") };
    assert_eq!(recvmsg(&io, second), Verdict::Translate(to));
    assert_eq!(io.targets.borrow()[&1], 2, "one flow more, not one for each datagram");
}

#[test]
fn a_connected_sockets_peer_answers_as_the_frontend_it_connected_to() {
    let (io, one, two) = (Fake::default(), place(0, 1, true), place(0, 2, true));
    let backend = place(1, 1, true);
    io.serve(&one, Transport::Udp, 1, &[backend], 0);
    io.serve(&two, Transport::Udp, 2, &[backend], 0);
    assert_eq!(sendmsg(&io, one), Verdict::Translate(backend));
    assert_eq!(connect(&io, Transport::Udp, two), Verdict::Translate(backend));
    assert_eq!(recvmsg(&io, backend), Verdict::Translate(two));
    assert_eq!(getpeername(&io, Transport::Udp, backend), Verdict::Translate(two));
}

#[test]
fn a_slot_that_shows_another_targets_backend_leads_nowhere() {
    let (io, to, other) = (Fake::default(), place(0, 1, true), place(0, 2, true));
    io.serve(&to, Transport::Tcp, 1, &[place(1, 1, true)], 0);
    io.serve(&other, Transport::Tcp, 2, &[place(1, 2, true)], 0);
    let of = |target| *io.slots.borrow().iter().find(|(key, _)| key.target == target).unwrap().0;
    let (slot, stranger) = (of(1), io.slots.borrow()[&of(2)]);
    let own = io.slots.borrow_mut().insert(slot, stranger).unwrap();
    assert_eq!(connect(&io, Transport::Tcp, to), Verdict::Untouched, "the packet path finds somebody");
    io.slots.borrow_mut().insert(slot, own);
    assert_eq!(connect(&io, Transport::Tcp, to), Verdict::Translate(place(1, 1, true)));
}
