//! Which node a ServiceAccount token speaks for, as the API server says (TokenReview).
//!
//! The name comes from the token's own bound claims, which the API server has signed; nothing that a proxy says about itself
//! counts. Answers are kept for a while (`cache`), for longer while the API server is away.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::cache::{Cache, Verdict};
use crate::metrics::Metrics;

/// The audience that a token must be for.
pub(crate) const AUDIENCE: &str = "sheave-discovery";

/// Whose tokens are taken, in the controller's own namespace.
const ACCOUNT: &str = "sheave-proxy";

/// Where the API server puts the node of the pod that a token is bound to (KEP-4193).
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Questions asked at a time: after a restart every node of a large cluster comes at once.
const AT_A_TIME: usize = 32;

/// How long an answer may take, with the wait for a turn.
const PATIENCE: Duration = Duration::from_secs(8);

/// A token is about 1.3 kB; whatever is longer is none.
const LONGEST: usize = 16 << 10;

/// Why a token opens nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    /// It is no good.
    #[error("{0}")]
    Token(String),
    /// Nobody can say.
    #[error("the token can't be reviewed now: {0}")]
    Unknown(String),
}

/// Asks the API server, and remembers what it said.
#[derive(Debug)]
pub(crate) struct Reviewer {
    reviews: Api<TokenReview>,
    /// The user name of the ServiceAccount.
    account: String,
    cache: Mutex<Cache>,
    turns: Semaphore,
    metrics: Arc<Metrics>,
}

impl Reviewer {
    /// For tokens of the proxies' account in `namespace`.
    pub(crate) fn new(client: Client, namespace: &str, metrics: Arc<Metrics>) -> Self {
        Self {
            reviews: Api::all(client),
            account: format!("system:serviceaccount:{namespace}:{ACCOUNT}"),
            cache: Mutex::default(),
            turns: Semaphore::new(AT_A_TIME),
            metrics,
        }
    }

    /// The name of the node that a token speaks for.
    pub(crate) async fn review(&self, token: &str) -> Result<Arc<str>, Refused> {
        let (result, how) = self.look_up(token).await;
        self.metrics.token_reviews.with_label_values(&[how]).inc();
        result
    }

    async fn look_up(&self, token: &str) -> (Result<Arc<str>, Refused>, &'static str) {
        if token.len() > LONGEST || token.split('.').count() != 3 {
            return (Err(Refused::Token("what was sent is no ServiceAccount token".to_owned())), "refused");
        }
        // The token itself is kept nowhere.
        let key: [u8; 32] = Sha256::digest(token).into();
        if let Some(verdict) = self.cache().fresh(&key, Instant::now(), unix_seconds()) {
            return (verdict, "cached");
        }
        let asked = tokio::time::timeout(PATIENCE, self.ask(token)).await;
        let answer = asked.unwrap_or_else(|_| Err("no answer came in time".to_owned()));
        let (verdict, how) = match answer {
            Ok(status) => {
                let verdict = judge(&status, &self.account).map_err(Refused::Token);
                let how = if verdict.is_ok() { "accepted" } else { "refused" };
                self.cache().insert(key, &verdict, expiry(token), Instant::now());
                (verdict, how)
            }
            Err(error) => match self.cache().kept(&key, Instant::now()) {
                Some(node) => (Ok(node), "kept"),
                None => (Err(Refused::Unknown(error)), "failed"),
            },
        };
        self.metrics.token_cache_entries.set(i64::try_from(self.cache().len()).unwrap_or(i64::MAX));
        (verdict, how)
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn ask(&self, token: &str) -> Result<TokenReviewStatus, String> {
        let _turn = self.turns.acquire().await.map_err(|error| error.to_string())?;
        let spec = TokenReviewSpec { token: token.to_owned(), audiences: Some(vec![AUDIENCE.to_owned()]) };
        let review = TokenReview { metadata: ObjectMeta::default(), spec, status: None };
        let answer = self.reviews.create(&PostParams::default(), &review).await.map_err(|error| error.to_string())?;
        answer.status.ok_or_else(|| "the answer has no status".to_owned())
    }
}

/// What the API server's answer means.
fn judge(status: &TokenReviewStatus, account: &str) -> Verdict {
    if status.authenticated != Some(true) {
        let why = status.error.as_deref().filter(|why| !why.is_empty()).unwrap_or("it is not authentic");
        return Err(format!("the API server does not accept the token: {why}"));
    }
    let audiences = status.audiences.as_deref().unwrap_or_default();
    if !audiences.iter().any(|audience| audience == AUDIENCE) {
        return Err(format!("the token is not for audience {AUDIENCE}"));
    }
    let user = status.user.as_ref();
    let name = user.and_then(|user| user.username.as_deref()).unwrap_or_default();
    if name != account {
        return Err(format!("the token is of {name}, not of {account}"));
    }
    let extra = user.and_then(|user| user.extra.as_ref()).and_then(|extra| extra.get(NODE_NAME));
    match extra.map(Vec::as_slice) {
        Some([node]) if !node.is_empty() => Ok(node.as_str().into()),
        Some(_) | None => {
            Err("the token names no node; it has to be a pod's projected one, of Kubernetes 1.30 or newer".to_owned())
        }
    }
}

/// When a token says that it expires, in seconds since 1970. Only asked of tokens that the API server has accepted.
fn expiry(token: &str) -> Option<u64> {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice::<serde_json::Value>(&claims).ok()?.get("exp")?.as_u64()
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::super::fake::{self, token};
    use super::*;

    fn reviewer(answer: impl Fn() -> fake::Answer + Send + Sync + 'static) -> (Reviewer, Arc<Metrics>) {
        let metrics = Arc::new(Metrics::new());
        let client = fake::server(move |_, _| answer());
        (Reviewer::new(client, "sheave-system", metrics.clone()), metrics)
    }

    #[tokio::test]
    async fn the_node_is_the_one_that_the_api_server_names() {
        let (reviewer, metrics) = reviewer(|| fake::review("sheave-proxy", &[AUDIENCE], Some("a")));
        for _ in 0..3 {
            assert_eq!(reviewer.review(&token("a", u64::MAX)).await.as_deref(), Ok("a"));
        }
        let count = |how| metrics.token_reviews.with_label_values(&[how]).get();
        assert_eq!((count("accepted"), count("cached"), metrics.token_cache_entries.get()), (1, 2, 1));
    }

    #[tokio::test]
    async fn tokens_that_prove_no_node_are_refused_with_the_reason() {
        for (answer, reason) in [
            (fake::review("sheave-proxy", &["other"], Some("a")), "audience"),
            (fake::review("somebody", &[AUDIENCE], Some("a")), "system:serviceaccount:sheave-system:somebody"),
            (fake::review("sheave-proxy", &[AUDIENCE], None), "names no node"),
            (fake::not_authentic(), "has expired"),
        ] {
            let (reviewer, _) = reviewer(move || answer.clone());
            let refused = reviewer.review(&token("x", 0)).await.unwrap_err();
            assert!(matches!(refused, Refused::Token(_)) && refused.to_string().contains(reason), "{refused}");
        }
        let (reviewer, _) = reviewer(|| panic!("nobody asks about what can't be a token"));
        assert!(matches!(reviewer.review("secret").await, Err(Refused::Token(_))));
    }

    #[tokio::test]
    async fn while_the_api_server_is_away_what_it_said_last_holds() {
        let away = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let switch = away.clone();
        let (reviewer, metrics) = reviewer(move || match switch.load(std::sync::atomic::Ordering::SeqCst) {
            false => fake::review("sheave-proxy", &[AUDIENCE], Some("a")),
            true => fake::status(503),
        });
        // Expired at once, so that each look asks.
        assert_eq!(reviewer.review(&token("a", 1)).await.as_deref(), Ok("a"));
        away.store(true, std::sync::atomic::Ordering::SeqCst);
        assert_eq!(reviewer.review(&token("a", 1)).await.as_deref(), Ok("a"));
        assert!(matches!(reviewer.review(&token("b", 1)).await, Err(Refused::Unknown(_))));
        let count = |how| metrics.token_reviews.with_label_values(&[how]).get();
        assert_eq!((count("accepted"), count("kept"), count("failed")), (1, 1, 1));
    }

    #[test]
    fn the_expiry_is_read_from_the_claims() {
        assert_eq!(expiry(&token("a", 77)), Some(77));
        assert_eq!(expiry("a.!.c"), None);
    }
}
