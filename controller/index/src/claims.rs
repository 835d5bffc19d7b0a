//! Which Services wish for one frontend, and who has to be told that another keeps it. Who keeps it is decided by the
//! model's order of claims, as in every proxy; here it is only said.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use sheave_model::{Claim, Frontend, FrontendKind, NodeFacts, Service, ServiceKey, claims};

use crate::{Condition, Kind, ObjectKey};

/// Every claim of every Service, NodePorts by their localhost address, and those that lost.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    all: BTreeSet<Claim>,
    /// By losing Service: its claim, and the Service that keeps the frontend.
    lost: BTreeMap<ServiceKey, BTreeMap<Claim, ServiceKey>>,
}

impl Claims {
    /// Replaces a Service's claims. Returns the Services whose losses may have changed.
    pub(crate) fn replace(&mut self, before: Option<&Service>, after: Option<&Service>) -> BTreeSet<ServiceKey> {
        let node = NodeFacts::default();
        let list = |service: Option<&Service>| -> BTreeSet<Claim> {
            service.map(|service| claims(service, &node).into_iter().collect()).unwrap_or_default()
        };
        let (before, after) = (list(before), list(after));
        let mut touched = BTreeMap::new();
        for claim in before.symmetric_difference(&after) {
            touched.entry(claim.frontend).or_insert_with(|| self.keeper(claim.frontend).cloned());
        }
        let mut changed = BTreeSet::new();
        for claim in before.difference(&after) {
            self.all.remove(claim);
            self.forget(claim);
            changed.insert(claim.service.clone());
        }
        for claim in after.difference(&before) {
            self.all.insert(claim.clone());
            changed.insert(claim.service.clone());
        }
        for (frontend, old) in touched {
            // With the same keeper as before only the new claims need a verdict, so a crowd at one frontend stays cheap.
            let kept = old.as_ref() == self.keeper(frontend);
            let claimants: Vec<Claim> = if kept {
                after.iter().filter(|claim| claim.frontend == frontend).cloned().collect()
            } else {
                self.on(frontend).cloned().collect()
            };
            for claim in claimants {
                changed.insert(claim.service.clone());
                self.judge(claim);
            }
        }
        changed
    }

    /// What a Service has to be told.
    pub(crate) fn conditions(&self, service: &ServiceKey) -> Vec<Condition> {
        let lost = self.lost.get(service).into_iter().flatten();
        let object = ObjectKey::new(Kind::Service, service.namespace.clone(), service.name.clone());
        lost.map(|(claim, keeper)| {
            let (field, what) = match claim.kind {
                FrontendKind::ClusterIp => ("spec.clusterIPs".to_owned(), claim.frontend.to_string()),
                FrontendKind::LoadBalancer => ("status.loadBalancer.ingress".to_owned(), claim.frontend.to_string()),
                FrontendKind::ExternalIp => ("spec.externalIPs".to_owned(), claim.frontend.to_string()),
                FrontendKind::NodePort => (
                    format!("spec.ports[{}].nodePort", claim.port),
                    format!("{}/{}", claim.frontend.address.port(), claim.frontend.protocol),
                ),
            };
            Condition {
                object: object.clone(),
                field,
                message: format!("{what} is kept by Service {keeper}"),
                remedy: "give this Service another address or port, or delete the other".to_owned(),
            }
        })
        .collect()
    }

    fn on(&self, frontend: Frontend) -> impl Iterator<Item = &Claim> {
        let service = ServiceKey::new("", "");
        let first = Claim { frontend, kind: FrontendKind::ClusterIp, created: i64::MIN, service, port: 0 };
        self.all.range((Bound::Included(first), Bound::Unbounded)).take_while(move |claim| claim.frontend == frontend)
    }

    fn keeper(&self, frontend: Frontend) -> Option<&Claim> {
        self.on(frontend).next()
    }

    /// Notes whether a claim lost, and to whom. A Service that claims a frontend twice does not lose it.
    fn judge(&mut self, claim: Claim) {
        let keeper = self.keeper(claim.frontend).map(|keeper| keeper.service.clone());
        match keeper.filter(|keeper| *keeper != claim.service) {
            Some(keeper) => {
                self.lost.entry(claim.service.clone()).or_default().insert(claim, keeper);
            }
            None => self.forget(&claim),
        }
    }

    fn forget(&mut self, claim: &Claim) {
        if let Some(lost) = self.lost.get_mut(&claim.service) {
            lost.remove(claim);
            if lost.is_empty() {
                self.lost.remove(&claim.service);
            }
        }
    }
}
