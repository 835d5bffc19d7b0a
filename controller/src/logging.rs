//! Log lines on standard error, for people or as JSON, with a level that can be changed while running.

use std::io::IsTerminal as _;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::ConfigError;

/// The API server's client logs every try that fails, which we do ourselves, now and then. A filter that names it is obeyed.
const CLIENT: &str = "kube_client";

/// Changes which lines are written.
#[derive(Clone, Debug)]
pub(crate) struct LogLevel(reload::Handle<EnvFilter, Registry>);

impl LogLevel {
    /// Sets another filter. Fails with a line that says what is wrong with it.
    pub(crate) fn set(&self, filter: &str) -> Result<(), String> {
        let parsed = parse(filter)?;
        self.0.reload(parsed).map_err(|error| error.to_string())
    }

    /// A handle that is attached to no log, for tests.
    #[cfg(test)]
    pub(crate) fn detached() -> (Self, Box<dyn Layer<Registry> + Send + Sync>) {
        let (layer, handle) = reload::Layer::new(EnvFilter::new("info"));
        (Self(handle), layer.boxed())
    }
}

fn parse(filter: &str) -> Result<EnvFilter, String> {
    let quiet = if filter.contains(CLIENT) { filter.to_owned() } else { format!("{filter},{CLIENT}=off") };
    EnvFilter::try_new(quiet).map_err(|error| format!("log filter {filter:?}: {error}; write it as info,hyper=warn"))
}

/// Starts logging. Fails on a filter that can't be read.
pub(crate) fn start(json: bool, filter: &str) -> Result<LogLevel, ConfigError> {
    let (filter, handle) = reload::Layer::new(parse(filter).map_err(ConfigError)?);
    // Colours are for a person's terminal: in a file or a pod's log they are noise.
    let lines = fmt::layer().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    let lines = if json { lines.json().flatten_event(true).boxed() } else { lines.boxed() };
    let started = tracing_subscriber::registry().with(filter).with(lines).try_init();
    started.map_err(|error| ConfigError(format!("logging can't start: {error}")))?;
    Ok(LogLevel(handle))
}
