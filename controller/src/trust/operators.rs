//! Who may ask about all nodes: the API server reviews the token, and then says whether its user may.
//!
//! The token's audience is the command line's own, so that no other token has to be sent here; what may be asked is an ordinary
//! rule of RBAC about a resource that exists for this purpose only.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

/// The audience that a token must be for.
const AUDIENCE: &str = "sheave-cli";

/// What a user must be allowed to `get`: group and resource. No such object exists.
const ALLOWED: (&str, &str) = ("sheave.io", "status");

/// Questions asked of the API server at a time.
const AT_A_TIME: usize = 4;

/// How long both answers may take together.
const PATIENCE: Duration = Duration::from_secs(8);

/// A token is about 1.3 kB; whatever is longer is none.
const LONGEST: usize = 16 << 10;

/// Answers hold this long, good and bad ones: a right that was just given or taken shows soon.
const KEPT: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(5));

/// Answers that are kept.
const MOST: usize = 256;

/// Why somebody may not ask.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Denied {
    /// The token is no good.
    #[error("{0}")]
    Token(String),
    /// Its user may not.
    #[error("{0}")]
    Access(String),
    /// Nobody can say.
    #[error("the API server can't be asked who this is: {0}")]
    Unknown(String),
}

/// A digest of a token.
type Key = [u8; 32];

/// What was said, and when.
type Answer = (Instant, Result<(), Denied>);

/// Asks the API server, and remembers for a short while what it said.
#[derive(Debug)]
pub(crate) struct Operators {
    reviews: Api<TokenReview>,
    access: Api<SubjectAccessReview>,
    kept: Mutex<HashMap<Key, Answer>>,
    turns: Semaphore,
}

impl Operators {
    /// Asks by `client`.
    pub(crate) fn new(client: Client) -> Self {
        let (reviews, access) = (Api::all(client.clone()), Api::all(client));
        Self { reviews, access, kept: Mutex::default(), turns: Semaphore::new(AT_A_TIME) }
    }

    /// Whether the token's user may ask.
    pub(crate) async fn admit(&self, token: &str) -> Result<(), Denied> {
        if token.len() > LONGEST || token.split('.').count() != 3 {
            return Err(Denied::Token("what was sent is no ServiceAccount token".to_owned()));
        }
        // The token itself is kept nowhere.
        let key: Key = Sha256::digest(token).into();
        if let Some(verdict) = self.remembered(&key, Instant::now()) {
            return verdict;
        }
        let asked = tokio::time::timeout(PATIENCE, self.ask(token)).await;
        let verdict = asked.unwrap_or_else(|_| Err(Denied::Unknown("no answer came in time".to_owned())));
        if !matches!(verdict, Err(Denied::Unknown(_))) {
            self.remember(key, verdict.clone(), Instant::now());
        }
        verdict
    }

    fn remembered(&self, key: &Key, now: Instant) -> Option<Result<(), Denied>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(key).filter(|entry| holds(entry, now)).map(|(_, verdict)| verdict.clone())
    }

    fn remember(&self, key: Key, verdict: Result<(), Denied>, now: Instant) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MOST {
            kept.retain(|_, entry| holds(entry, now));
        }
        // Where all of them still hold, this one is asked about again.
        if kept.len() < MOST {
            kept.insert(key, (now, verdict));
        }
    }

    async fn ask(&self, token: &str) -> Result<(), Denied> {
        let unknown = |error: &dyn std::fmt::Display| Denied::Unknown(error.to_string());
        let _turn = self.turns.acquire().await.map_err(|error| unknown(&error))?;
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { metadata: ObjectMeta::default(), spec, status: None };
        let review = self.reviews.create(&PostParams::default(), &review).await.map_err(|error| unknown(&error))?;
        let status = review.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            let why = status.error.filter(|why| !why.is_empty()).unwrap_or_else(|| "it is not authentic".to_owned());
            return Err(Denied::Token(format!("the API server does not accept the token: {why}")));
        }
        if !status.audiences.unwrap_or_default().iter().any(|audience| audience == AUDIENCE) {
            return Err(Denied::Token(format!("the token is not for audience {AUDIENCE}")));
        }
        let user = status.user.unwrap_or_default();
        let name = user.username.clone().unwrap_or_default();
        let review = self.access.create(&PostParams::default(), &question(user)).await;
        let answer = review.map_err(|error| unknown(&error))?.status.unwrap_or_default();
        if answer.allowed {
            return Ok(());
        }
        let (group, resource) = ALLOWED;
        Err(Denied::Access(format!(
            "{name} may not get {resource}.{group}; bind it to ClusterRole sheave-operator, as {AUDIENCE} of this namespace is"
        )))
    }
}

fn holds((since, verdict): &Answer, now: Instant) -> bool {
    now.saturating_duration_since(*since) < if verdict.is_ok() { KEPT.0 } else { KEPT.1 }
}

fn question(user: UserInfo) -> SubjectAccessReview {
    let (group, resource) = ALLOWED;
    let attributes = ResourceAttributes {
        group: Some(group.to_owned()),
        resource: Some(resource.to_owned()),
        verb: Some("get".to_owned()),
        ..ResourceAttributes::default()
    };
    let spec = SubjectAccessReviewSpec {
        user: user.username,
        uid: user.uid,
        groups: user.groups,
        extra: user.extra,
        resource_attributes: Some(attributes),
        ..SubjectAccessReviewSpec::default()
    };
    SubjectAccessReview { metadata: ObjectMeta::default(), spec, status: None }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use serde_json::{Value, json};

    use super::super::fake::{self, token};
    use super::*;

    /// A server that accepts tokens of `audience`, and whose users may where `allowed`. Counts what it is asked.
    fn operators(audience: &'static str, allowed: bool) -> (Operators, Arc<AtomicU32>) {
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        let client = fake::server(move |line, body: &Value| {
            count.fetch_add(1, Ordering::SeqCst);
            if line.ends_with("tokenreviews") {
                return fake::review("sheave-cli", &[audience], None);
            }
            assert_eq!(body["spec"]["user"], "system:serviceaccount:sheave-system:sheave-cli");
            let wanted = &body["spec"]["resourceAttributes"];
            assert_eq!((wanted["group"].as_str(), wanted["verb"].as_str()), (Some("sheave.io"), Some("get")));
            (
                201,
                json!({"kind": "SubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {},
                "spec": {}, "status": {"allowed": allowed}}),
            )
        });
        (Operators::new(client), asked)
    }

    #[tokio::test]
    async fn a_user_who_may_is_asked_about_once_a_minute() {
        let (operators, asked) = operators(AUDIENCE, true);
        for _ in 0..3 {
            assert_eq!(operators.admit(&token("a", 1)).await, Ok(()));
        }
        assert_eq!(asked.load(Ordering::SeqCst), 2, "a review of the token and one of the access");
        let later = Instant::now() + KEPT.0;
        assert_eq!(operators.remembered(&Sha256::digest(token("a", 1)).into(), later), None);
    }

    #[tokio::test]
    async fn others_are_told_what_they_lack() {
        let (other, _) = operators("sheave-discovery", true);
        assert!(matches!(other.admit(&token("a", 1)).await, Err(Denied::Token(why)) if why.contains(AUDIENCE)));
        let (forbidden, _) = operators(AUDIENCE, false);
        assert!(
            matches!(forbidden.admit(&token("a", 1)).await, Err(Denied::Access(why)) if why.contains("sheave-operator"))
        );
        let (nobody, asked) = operators(AUDIENCE, true);
        assert!(matches!(nobody.admit("secret").await, Err(Denied::Token(_))));
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        let away = Operators::new(fake::server(|_, _| fake::status(503)));
        assert!(matches!(away.admit(&token("a", 1)).await, Err(Denied::Unknown(_))));
        assert_eq!(away.remembered(&Sha256::digest(token("a", 1)).into(), Instant::now()), None, "not kept");
    }

    #[tokio::test]
    async fn no_more_is_kept_than_there_is_room_for() {
        let (operators, _) = operators(AUDIENCE, true);
        let now = Instant::now();
        for number in 0..MOST * 2 {
            let key: Key = Sha256::digest(number.to_string()).into();
            operators.remember(key, Ok(()), now);
        }
        assert_eq!(operators.kept.lock().unwrap().len(), MOST);
        operators.remember(Sha256::digest("later").into(), Ok(()), now + KEPT.0);
        assert_eq!(operators.kept.lock().unwrap().len(), 1);
    }
}
