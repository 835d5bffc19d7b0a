//! Whether controllers can be asked, and what they say of themselves and of nodes.

use k8s_openapi::jiff::Timestamp;

use super::certificate;
use crate::access;
use crate::args::Common;
use crate::ask::World;
use crate::finding::Finding;

/// Asks all of them.
pub(super) async fn look(common: &Common) -> Vec<Finding> {
    let replicas = match access::replicas(common).await {
        Ok(replicas) => replicas,
        Err(error) => return vec![unasked(&error)],
    };
    let world = match World::look(replicas).await {
        Ok(world) => world,
        Err(error) => return vec![unasked(&error)],
    };
    let mut findings = Vec::new();
    for asked in &world.replicas {
        let about = format!("controller {}", asked.replica.name);
        match &asked.overview {
            Ok(overview) if overview.ready => {
                findings.push(Finding::ok(about, format!("answers, version {}", overview.version)))
            }
            Ok(_) => findings.push(Finding::error(
                about,
                "it hasn't listed everything yet",
                "its log says what it can't list",
            )),
            Err(why) => findings.push(Finding::error(about, why, "see `sheave status`")),
        }
    }
    let ends = world.overviews().map(|overview| overview.ca_expires).max().unwrap_or_default();
    if ends > 0 {
        findings.push(certificate::expiry("Secret sheave-ca", ends, Timestamp::now().as_second()));
    }
    let nodes = world.nodes();
    let connected = nodes.values().flatten().count();
    let message = format!("{connected} of {} have a stream to a controller", nodes.len());
    findings.push(if connected < nodes.len() {
        Finding::error("proxies", message, "`sheave status` names the others")
    } else {
        Finding::ok("proxies", message)
    });
    findings
}

fn unasked(error: &anyhow::Error) -> Finding {
    Finding::error("controllers", format!("{error:#}"), "nodes go on with what they know")
}
