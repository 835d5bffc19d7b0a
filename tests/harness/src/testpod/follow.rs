//! Following a change: connections one after the other, until they end as they should from now on.

use std::time::Duration;

use anyhow::{Result, bail};

use super::client;
use super::protocol::{Follow, Followed, Outcome};
use crate::sys::monotonic;

/// Connections in a row that meet silence, before that is taken for an end. One may be a busy machine; that none is refused
/// may be the kernel, which says that nobody is there once a second at most (net.ipv4.icmp_ratelimit).
const SILENT: u32 = 3;

/// Tries until somebody answers, or nobody does any more.
pub(super) fn follow(change: &Follow) -> Result<Followed> {
    let start = monotonic();
    let mut silence = Silence::default();
    let mut tries = 0;
    loop {
        tries += 1;
        let begun = monotonic();
        let outcome = client::ask(&change.ask).outcome;
        if let Some(at) = silence.then(&outcome, change.reached, begun, monotonic()) {
            return Ok(Followed { at: u64::try_from(at.as_nanos())?, tries });
        }
        if monotonic() - start >= Duration::from_millis(change.within) {
            bail!("{}: {outcome:?} even after {} ms, {tries} tries", change.ask.target, change.within);
        }
        std::thread::sleep(Duration::from_micros(change.gap));
    }
}

/// Connections in a row that met silence.
#[derive(Default)]
struct Silence {
    count: u32,
    /// When the first of them was begun.
    since: Duration,
}

impl Silence {
    /// Takes one more connection in. When the wanted change showed, once it has: an answer when it came, its absence from the
    /// beginning of the first connection that met it.
    fn then(&mut self, outcome: &Outcome, reached: bool, begun: Duration, ended: Duration) -> Option<Duration> {
        let answered = matches!(outcome, Outcome::Served | Outcome::Status(_));
        if answered || self.count == 0 {
            self.since = begun;
        }
        self.count = if answered { 0 } else { self.count + 1 };
        match outcome {
            _ if answered => reached.then_some(ended),
            _ if reached => None,
            Outcome::Dropped => (self.count >= SILENT).then_some(self.since),
            _ => Some(if self.count == 1 { ended } else { self.since }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr, TcpListener};

    use super::super::protocol::{Ask, Kind};
    use super::super::server::Servers;
    use super::*;

    /// Feeds outcomes, the nth from 10 n to 10 n + 5, until the change shows.
    fn shows(reached: bool, outcomes: &[Outcome]) -> Option<u64> {
        let mut silence = Silence::default();
        let time = Duration::from_secs;
        let mut all = (0..).zip(outcomes);
        let at = all.find_map(|(n, it)| silence.then(it, reached, time(10 * n), time(10 * n + 5)));
        at.map(|at| at.as_secs())
    }

    #[test]
    fn an_end_counts_from_the_first_connection_that_met_it() {
        use Outcome::{Dropped, Refused, Served};
        assert_eq!(shows(false, &[Served, Refused]), Some(15));
        assert_eq!(shows(false, &[Served, Dropped, Dropped, Dropped]), Some(10));
        assert_eq!(shows(false, &[Dropped, Served, Dropped, Refused]), Some(20));
        assert_eq!(shows(false, &[Dropped, Dropped, Served, Dropped, Dropped]), None);
        assert_eq!(shows(true, &[Dropped, Refused, Dropped, Dropped, Served]), Some(45));
        assert_eq!(shows(true, &[Dropped, Outcome::Status(400)]), Some(15));
    }

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
