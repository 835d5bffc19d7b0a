//! ServiceAccount tokens of proxies' pods: as a kubelet gets them, and as somebody who must not would make them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, SigningKey};
use serde_json::{Value, json};

use super::{Api, Kube, SYSTEM};

/// The proxies' ServiceAccount.
const ACCOUNT: &str = "sheave-proxy";

impl Kube {
    /// Makes the proxies' account, and a Pod object of it on a node, behind which nothing runs. Returns its name.
    pub fn proxy_pod(&self, node: &str) -> Result<String> {
        let name = format!("{ACCOUNT}-{node}");
        let meta = |name: &str| json!({"name": name, "namespace": SYSTEM});
        self.api.apply(&json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta(ACCOUNT)}))?;
        let spec = json!({"nodeName": node, "serviceAccountName": ACCOUNT, "hostNetwork": true,
            "containers": [{"name": "proxy", "image": "sheave"}]});
        self.api.apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta(&name), "spec": spec}))?;
        Ok(name)
    }

    /// The key that the API server signs tokens with.
    pub fn accounts_key(&self) -> PathBuf {
        self.folder.join("accounts.key")
    }
}

impl Api {
    /// A token for a pod of the proxies, as the kubelet gets it.
    pub fn pod_token(&self, pod: &str, audience: &str) -> Result<String> {
        let uid = self.read("Pod", SYSTEM, pod)?["metadata"]["uid"].clone();
        let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid});
        let spec = json!({"audiences": [audience], "expirationSeconds": 3600, "boundObjectRef": bound});
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        let path = format!("/api/v1/namespaces/{SYSTEM}/serviceaccounts/{ACCOUNT}/token");
        let (status, answer) = self.request("POST", &path, Some(&request))?;
        let answer: Value = serde_json::from_str(&answer).with_context(|| format!("{path}: {status}: {answer}"))?;
        answer["status"]["token"].as_str().map(str::to_owned).with_context(|| format!("{path}: {status}: {answer}"))
    }
}

/// A token with other claims, signed with the API server's own key, an elliptic one in PEM.
pub fn with_claims(token: &str, key: &Path, change: impl FnOnce(&mut Value)) -> Result<String> {
    let pem = fs::read_to_string(key).with_context(|| format!("{}", key.display()))?;
    signed(token, change, &KeyPair::from_pem(&pem).with_context(|| format!("{}", key.display()))?)
}

/// The same token as it was two hours ago, so that it has expired.
pub fn expired(token: &str, key: &Path) -> Result<String> {
    with_claims(token, key, |claims| {
        for claim in ["iat", "nbf", "exp"] {
            claims[claim] = (claims[claim].as_u64().unwrap_or_default() - 7200).into();
        }
    })
}

/// The same token, signed by somebody else.
pub fn forged(token: &str) -> Result<String> {
    signed(token, |_| {}, &KeyPair::generate().context("key")?)
}

fn signed(token: &str, change: impl FnOnce(&mut Value), key: &KeyPair) -> Result<String> {
    let claims = token.split('.').nth(1).context("no token")?;
    let mut claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
    change(&mut claims);
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let body = format!("{}.{}", part(&json!({"alg": "ES256", "typ": "JWT"})), part(&claims));
    let signature = key.sign(body.as_bytes()).context("signature")?;
    Ok(format!("{body}.{}", URL_SAFE_NO_PAD.encode(plain(&signature).context("a signature of another form")?)))
}

/// An ECDSA signature as JOSE has it (RFC 7518 3.4): both numbers with 32 bytes each, instead of DER.
fn plain(der: &[u8]) -> Option<Vec<u8>> {
    let mut rest = der.strip_prefix(&[0x30])?.get(1..)?;
    let mut both = Vec::with_capacity(64);
    for _ in 0..2 {
        let (&length, after) = rest.strip_prefix(&[0x02])?.split_first()?;
        let (number, after) = after.split_at_checked(length.into())?;
        let number = &number[number.len().saturating_sub(32)..];
        both.resize(both.len() + 32 - number.len(), 0);
        both.extend_from_slice(number);
        rest = after;
    }
    Some(both)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_a_signature_have_32_bytes_whatever_der_makes_of_them() {
        let mut der = vec![0x30, 0, 0x02, 33, 0];
        der.extend([0xff; 32]);
        der.extend([0x02, 2, 7, 8]);
        let both = plain(&der).unwrap();
        assert_eq!((both.len(), both[0], both[61], both[62], both[63]), (64, 0xff, 0, 7, 8));
        assert_eq!(plain(&[0x30, 0, 0x02, 9]), None);
    }
}
