//! Log lines to stderr, for eyes or as JSON; which ones can be changed while the program runs.

use std::io::IsTerminal as _;
use std::sync::Arc;

use anyhow::Context;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

use crate::args::LogFormat;

/// Changes which lines are written.
#[derive(Clone)]
pub(crate) struct LogLevel(Arc<reload::Handle<EnvFilter, Registry>>);

impl LogLevel {
    /// Writes what `filter` lets through from now on.
    ///
    /// # Errors
    /// Where it is no filter.
    pub(crate) fn set(&self, filter: &str) -> anyhow::Result<()> {
        let filter = EnvFilter::try_new(filter).context("it is no filter; e.g. info or sheave_proxy=debug,info")?;
        self.0.reload(filter).context("logging has ended")
    }
}

/// Starts logging.
///
/// # Errors
/// Where `filter` is none, or logging was started before.
pub(crate) fn start(format: LogFormat, filter: &str) -> anyhow::Result<LogLevel> {
    let (filter, handle) = reload::Layer::new(EnvFilter::try_new(filter)?);
    let registry = tracing_subscriber::registry().with(filter);
    // Colours are for a person's terminal: in a file or a pod's log they are noise.
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    match format {
        LogFormat::Human => registry.with(layer).try_init()?,
        LogFormat::Json => registry.with(layer.json().flatten_event(true)).try_init()?,
    }
    Ok(LogLevel(Arc::new(handle)))
}

#[cfg(test)]
mod tests {
    use super::*;

    impl LogLevel {
        /// One that changes a filter which nobody reads.
        pub(crate) fn detached() -> Self {
            let (layer, handle) = reload::Layer::<EnvFilter, Registry>::new(EnvFilter::new("info"));
            // The handle only knows its layer for as long as that lives.
            std::mem::forget(layer);
            Self(Arc::new(handle))
        }
    }

    #[test]
    fn a_filter_that_is_none_changes_nothing() {
        let level = LogLevel::detached();
        assert!(level.set("a=b=c").is_err());
        assert_eq!(level.0.with_current(ToString::to_string).unwrap(), "info");
        level.set("debug").unwrap();
        assert_eq!(level.0.with_current(ToString::to_string).unwrap(), "debug");
    }
}
