//! Random lives of sockets against a reference that knows Services as sets and sockets as what they should remember.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::place;
use crate::fake::Fake;
use crate::{Place, Transport, Verdict, connect, getpeername, recvmsg, sendmsg};

/// What happens. Numbers are of frontends, backends and sockets.
#[derive(Clone, Debug)]
enum Step {
    Serve { frontend: u8, udp: bool, set: BTreeSet<u8> },
    Connect { socket: u8, udp: bool, to: u8, frontend: bool },
    Send { socket: u8, to: u8, frontend: bool },
    Receive { socket: u8, from: u8 },
    Peer { socket: u8, udp: bool },
}

fn any_step() -> impl Strategy<Value = Step> {
    let sets = prop::collection::btree_set(0u8..5, 0..4);
    prop_oneof![
        2 => (0u8..3, any::<bool>(), sets).prop_map(|(frontend, udp, set)| Step::Serve { frontend, udp, set }),
        2 => (0u8..3, any::<bool>(), 0u8..5, prop::bool::weighted(0.8))
            .prop_map(|(socket, udp, to, frontend)| Step::Connect { socket, udp, to, frontend }),
        4 => (0u8..3, 0u8..5, prop::bool::weighted(0.9)).prop_map(|(socket, to, frontend)| Step::Send { socket, to, frontend }),
        4 => (0u8..3, 0u8..5).prop_map(|(socket, from)| Step::Receive { socket, from }),
        1 => (0u8..3, any::<bool>()).prop_map(|(socket, udp)| Step::Peer { socket, udp }),
    ]
}

/// What a socket should remember.
#[derive(Default)]
struct Socket {
    /// Frontend and backend of the last connect(), if it was translated.
    connected: Option<(Place, Place)>,
    /// Where it is connected now, in the kernel's eyes.
    peer: Option<Place>,
    /// Backends by frontend, from datagrams.
    flows: BTreeMap<Place, Place>,
    /// The frontend that used a backend last.
    answers: BTreeMap<Place, Place>,
}

#[derive(Default)]
struct Reference {
    services: BTreeMap<(Place, Transport), BTreeSet<Place>>,
    sockets: BTreeMap<(u8, Transport), Socket>,
}

impl Reference {
    /// The backend that a UDP socket must use, if it has one.
    fn kept(&self, socket: u8, to: &Place) -> Option<Place> {
        let set = self.services.get(&(*to, Transport::Udp))?;
        let socket = self.sockets.get(&(socket, Transport::Udp))?;
        let connected = socket.connected.filter(|(frontend, _)| frontend == to).map(|(_, backend)| backend);
        let stands = |backend: &Place| set.contains(backend);
        connected.filter(stands).or_else(|| socket.flows.get(to).copied().filter(stands))
    }
}

fn check(reference: &Reference, socket: u8, transport: Transport, to: &Place, got: Verdict) {
    match (reference.services.get(&(*to, transport)), got) {
        (None, got) => assert_eq!(got, Verdict::Untouched),
        (Some(set), got) if set.is_empty() => assert_eq!(got, Verdict::Refuse),
        (Some(set), Verdict::Translate(backend)) => {
            assert!(set.contains(&backend), "{backend:?} is no endpoint of {to:?}");
            if transport == Transport::Udp
                && let Some(kept) = reference.kept(socket, to)
            {
                assert_eq!(backend, kept, "a flow moved while its endpoint stands");
            }
        }
        (Some(_), got) => panic!("{to:?} has endpoints, and got {got:?}"),
    }
}

fn transport(udp: bool) -> Transport {
    if udp { Transport::Udp } else { Transport::Tcp }
}

fn run(steps: &[Step], v4: bool, seed: u64) {
    let (io, mut reference) = (Fake::default(), Reference::default());
    io.seed.set(seed);
    let place_of = |n: u8, frontend: bool| place(u8::from(!frontend), n, v4);
    for step in steps {
        match step {
            Step::Serve { frontend, udp, set } => {
                let (to, transport) = (place_of(*frontend, true), transport(*udp));
                let set: BTreeSet<_> = set.iter().map(|n| place_of(*n, false)).collect();
                let list: std::vec::Vec<_> = set.iter().copied().collect();
                io.serve(&to, transport, u32::from(frontend * 2 + u8::from(*udp)) + 1, &list, 0);
                reference.services.insert((to, transport), set);
            }
            Step::Connect { socket, udp, to, frontend } => {
                let (to, transport) = (place_of(*to, *frontend), transport(*udp));
                io.caller.set(u64::from(socket * 2 + u8::from(*udp)));
                let got = connect(&io, transport, to);
                check(&reference, *socket, transport, &to, got);
                let state = reference.sockets.entry((*socket, transport)).or_default();
                match got {
                    Verdict::Translate(backend) => {
                        state.connected = Some((to, backend));
                        state.peer = Some(backend);
                        // Answers are looked up once the socket has sent without connect().
                        if !state.flows.is_empty() {
                            state.answers.insert(backend, to);
                        }
                    }
                    Verdict::Untouched => {
                        state.peer = Some(to);
                        // A TCP socket's row is kept and compared: one to the same backend is the one that counts.
                        state.connected = state.connected.filter(|(_, b)| transport == Transport::Tcp && *b == to);
                    }
                    Verdict::Refuse => {}
                }
            }
            Step::Send { socket, to, frontend } => {
                let to = place_of(*to, *frontend);
                io.caller.set(u64::from(socket * 2 + 1));
                let got = sendmsg(&io, to);
                check(&reference, *socket, Transport::Udp, &to, got);
                let state = reference.sockets.entry((*socket, Transport::Udp)).or_default();
                if let Verdict::Translate(backend) = got
                    && state.connected != Some((to, backend))
                {
                    state.flows.insert(to, backend);
                    state.answers.insert(backend, to);
                }
            }
            Step::Receive { socket, from } => {
                let from = place_of(*from, false);
                io.caller.set(u64::from(socket * 2 + 1));
                let state = reference.sockets.entry((*socket, Transport::Udp)).or_default();
                let connected = state.connected.filter(|(_, backend)| *backend == from).map(|(frontend, _)| frontend);
                let shown = state.answers.get(&from).copied().or(connected);
                assert_eq!(recvmsg(&io, from), shown.map_or(Verdict::Untouched, Verdict::Translate));
            }
            Step::Peer { socket, udp } => {
                let state = reference.sockets.entry((*socket, transport(*udp))).or_default();
                let Some(peer) = state.peer else { continue };
                io.caller.set(u64::from(socket * 2 + u8::from(*udp)));
                let shown = state.connected.map_or(Verdict::Untouched, |(frontend, _)| Verdict::Translate(frontend));
                assert_eq!(getpeername(&io, transport(*udp), peer), shown);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn sockets_live_as_the_reference_says(
        steps in prop::collection::vec(any_step(), 1..60),
        v4 in any::<bool>(),
        seed in any::<u64>(),
    ) {
        run(&steps, v4, seed);
    }
}
