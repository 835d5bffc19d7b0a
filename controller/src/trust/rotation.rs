//! How one CA follows another without a proxy that trusts nobody. Pure: what is in the Secret and what is known go in, what has
//! to be written comes out.

use std::sync::Arc;
use std::time::Duration;

use super::keys::{Keys, Previous};
use crate::pki::{Authority, PkiError};

/// A CA is replaced when it holds for no more than 30 days. Made by us it holds ten years.
const RENEW_BEFORE: i64 = 30 * 24 * 3600;

/// Nodes that are away don't hold up a replacement for longer: their kubelets mount the newest CAs when they are back.
const LONGEST_OVERLAP: Duration = Duration::from_secs(24 * 3600);

/// Every replica looks at the Secret several times within this, so that none has yet to tell its proxies.
const SHORTEST_OVERLAP: Duration = Duration::from_secs(20);

/// As long the old CA stays trusted once nobody signs with it.
const RETIRING: Duration = Duration::from_secs(60);

/// A replica that doesn't lead waits this long for the leader to say what a strange CA in the Secret replaces.
const UNEXPLAINED: Duration = Duration::from_secs(60);

/// What the leader knows besides the Secret.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    /// Seconds since 1970.
    pub(super) now: i64,
    /// For how long the Secret has been as it is.
    pub(super) since: Duration,
    /// Whether every node of the cluster trusts all that is in the bundle.
    pub(super) acknowledged: bool,
}

/// What the leader does.
#[derive(Debug)]
pub(super) enum Plan {
    /// The Secret is right.
    Keep(Keys),
    /// It has to be written, for this reason.
    Write(Keys, &'static str),
}

/// What follows from the Secret (`found`, where there is one) and from what this replica `held` so far.
pub(super) fn plan(found: Option<Keys>, held: Option<&Keys>, facts: Facts) -> Result<Plan, PkiError> {
    let fresh = || Authority::make().map(Arc::new);
    let Some(found) = found else {
        return Ok(match held {
            None => Plan::Write(Keys::settled(fresh()?), "there was none"),
            Some(held) => Plan::Write(Keys::introducing(fresh()?, held.signer().clone()), "the Secret was deleted"),
        });
    };
    let overlong = facts.since >= LONGEST_OVERLAP;
    Ok(match &found.previous {
        None if held.is_some_and(|held| is_strange(&found, held)) => {
            let signer = held.map_or_else(|| found.signer().clone(), |held| held.signer().clone());
            Plan::Write(Keys::introducing(found.current, signer), "another CA was put into the Secret")
        }
        None if found.current.not_after() - facts.now < RENEW_BEFORE => {
            Plan::Write(Keys::introducing(fresh()?, found.current), "the CA is about to expire")
        }
        Some(Previous::Signing(_)) if overlong => {
            Plan::Write(found.retiring(), "a day has passed, though not every node has acknowledged the new CA")
        }
        Some(Previous::Signing(_)) if facts.acknowledged && facts.since >= SHORTEST_OVERLAP => {
            Plan::Write(found.retiring(), "every node has acknowledged the new CA")
        }
        Some(Previous::Trusted(_)) if facts.since >= RETIRING => {
            Plan::Write(Keys::settled(found.current), "nobody signs with the previous CA any more")
        }
        Some(_) | None => Plan::Keep(found),
    })
}

/// What a replica that doesn't lead makes of the Secret, which has been as it is `since`. None: what it held so far stands.
pub(super) fn follow(found: Keys, held: Option<&Keys>, since: Duration) -> Option<Keys> {
    let waits = held.is_some_and(|held| is_strange(&found, held)) && since < UNEXPLAINED;
    (!waits).then_some(found)
}

/// Whether a CA took the place of another one and nothing says so.
fn is_strange(found: &Keys, held: &Keys) -> bool {
    let known = [&held.current, held.signer()];
    found.previous.is_none() && known.iter().all(|known| known.certificate() != found.current.certificate())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority() -> Arc<Authority> {
        Arc::new(Authority::make().unwrap())
    }

    fn facts(seconds: u64, acknowledged: bool) -> Facts {
        Facts { now: 0, since: Duration::from_secs(seconds), acknowledged }
    }

    fn written(plan: Plan) -> Keys {
        match plan {
            Plan::Write(keys, _) => keys,
            Plan::Keep(keys) => panic!("nothing was written: {keys:?}"),
        }
    }

    fn kept(found: &Keys, held: Option<&Keys>, facts: Facts) -> bool {
        matches!(plan(Some(found.clone()), held, facts).unwrap(), Plan::Keep(keys) if keys.is(found))
    }

    #[test]
    fn a_ca_is_made_once() {
        let first = written(plan(None, None, facts(0, true)).unwrap());
        assert!(first.previous.is_none());
        assert!(kept(&first, None, facts(9, true)) && kept(&first, Some(&first), facts(1 << 30, true)));
    }

    #[test]
    fn a_new_ca_signs_only_once_every_node_trusts_it_and_the_old_one_goes_last() {
        let old = Keys::settled(authority());
        let introducing = written(plan(None, Some(&old), facts(0, false)).unwrap());
        assert_eq!(introducing.signer().certificate(), old.current.certificate());
        assert!(kept(&introducing, Some(&introducing), facts(3600, false)), "a node has not acknowledged");
        assert!(kept(&introducing, Some(&introducing), facts(1, true)), "a replica may not have told its nodes");
        for facts in [facts(25, true), facts(24 * 3600, false)] {
            let retiring = written(plan(Some(introducing.clone()), Some(&introducing), facts).unwrap());
            assert_eq!(retiring.signer().certificate(), introducing.current.certificate());
            assert_eq!(retiring.bundle(), introducing.bundle());
            assert!(kept(&retiring, Some(&retiring), self::facts(59, true)));
            let settled = written(plan(Some(retiring.clone()), Some(&retiring), self::facts(60, true)).unwrap());
            assert!(settled.previous.is_none());
            assert_eq!(settled.bundle(), introducing.current.certificate());
        }
    }

    #[test]
    fn a_ca_that_somebody_else_put_there_is_introduced_first() {
        let (old, theirs) = (Keys::settled(authority()), Keys::settled(authority()));
        let introducing = written(plan(Some(theirs.clone()), Some(&old), facts(0, true)).unwrap());
        assert_eq!(introducing.current.certificate(), theirs.current.certificate());
        assert_eq!(introducing.signer().certificate(), old.current.certificate());
        // Others wait for that, but not for ever.
        assert!(follow(theirs.clone(), Some(&old), Duration::from_secs(1)).is_none());
        assert!(follow(theirs.clone(), Some(&old), UNEXPLAINED).is_some_and(|keys| keys.is(&theirs)));
        assert!(follow(introducing.clone(), Some(&old), Duration::ZERO).is_some());
        assert!(follow(theirs, None, Duration::ZERO).is_some());
    }

    #[test]
    fn the_secret_deleted_once_more_keeps_the_signer_that_nodes_trust() {
        let old = Keys::settled(authority());
        let first = written(plan(None, Some(&old), facts(0, false)).unwrap());
        let second = written(plan(None, Some(&first), facts(0, false)).unwrap());
        assert_eq!(second.signer().certificate(), old.current.certificate());
        assert_ne!(second.current.certificate(), first.current.certificate());
    }

    #[test]
    fn a_ca_that_is_about_to_expire_is_replaced() {
        let old = Keys::settled(authority());
        let at = |now| plan(Some(old.clone()), Some(&old), Facts { now, ..facts(0, false) }).unwrap();
        assert!(matches!(at(old.current.not_after() - RENEW_BEFORE), Plan::Keep(_)));
        let introducing = written(at(old.current.not_after() - RENEW_BEFORE + 1));
        assert_eq!(introducing.signer().certificate(), old.current.certificate());
    }
}
