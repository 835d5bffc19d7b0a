//! The view a replica had of its source.

use std::time::Duration;

use sheave_model::View;

use crate::proto;

/// A view as it travels, with the time since the replica last heard from its source.
pub fn view_to_proto(view: &View, age: Duration) -> proto::View {
    proto::View {
        source: view.source.clone(),
        versions: view.versions.clone(),
        age_millis: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
    }
}

/// A view as it came, with its age.
pub fn view_from_proto(view: proto::View) -> (View, Duration) {
    (View { source: view.source, versions: view.versions }, Duration::from_millis(view.age_millis))
}
