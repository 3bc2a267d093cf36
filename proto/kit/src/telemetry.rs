//! Logs and traces: set up first, flushed last.

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing_subscriber::filter::{FilterExt as _, LevelFilter, Targets};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

/// How to log and where to send traces.
#[derive(Clone, Debug, Default, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TelemetryConfig {
    /// What to log, in `tracing` directives, for example `info,chancery_node=debug`.
    /// Unset: `warn`.
    pub log: Option<String>,
    /// Log as JSON lines instead of text.
    pub json: bool,
    /// OTLP endpoint (gRPC), for example `http://127.0.0.1:4317`. Unset: no traces leave.
    pub otlp_endpoint: Option<String>,
}

/// Telemetry cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log directives do not parse.
    #[error("log directives: {0}")]
    Directives(#[from] tracing_subscriber::filter::ParseError),
    /// The exporter cannot be built.
    #[error("OTLP exporter: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    /// Somebody set telemetry up before.
    #[error("telemetry is already set up")]
    AlreadySet,
}

/// Keeps the exporters; flushes them when shut down.
#[must_use]
pub struct Telemetry(Option<SdkTracerProvider>);

impl Telemetry {
    /// Flushes and stops. Called last, after failure, too.
    pub fn shutdown(self) {
        if let Some(provider) = self.0
            && let Err(error) = provider.shutdown()
        {
            tracing::warn!(%error, "traces were not flushed");
        }
    }
}

/// Sets up the process's logs (to standard error) and traces. What a library says of
/// people, the directives do not turn on.
///
/// # Errors
/// Directives or endpoint do not parse, or it was done before.
pub fn init(service: &'static str, config: &TelemetryConfig) -> Result<Telemetry, TelemetryError> {
    init_to(service, config, std::io::stderr)
}

/// As [`init`], with logs to another place.
///
/// # Errors
/// As there.
pub fn init_to<W>(
    service: &'static str,
    config: &TelemetryConfig,
    logs: W,
) -> Result<Telemetry, TelemetryError>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(config.log.as_deref().unwrap_or("warn"))?;
    let text = tracing_subscriber::fmt::layer().with_writer(logs).with_target(true);
    // What MLS shows of its members at `trace` holds their aliases.
    let quiet = Targets::new().with_default(LevelFilter::TRACE).with_target("openmls", LevelFilter::WARN);
    let log = if config.json { text.json().boxed() } else { text.boxed() };
    let provider = config.otlp_endpoint.as_deref().map(|endpoint| traces(service, endpoint)).transpose()?;
    // Our own alone: the exporter's connection has spans, too, and would never be done with them.
    let own = Targets::new().with_target("chancery", LevelFilter::INFO);
    let spans = provider.as_ref().map(|provider| {
        tracing_opentelemetry::layer().with_tracer(provider.tracer(service)).with_filter(own)
    });
    tracing_subscriber::registry()
        .with(log.with_filter(filter.and(quiet)))
        .with(spans)
        .try_init()
        .map_err(|_| TelemetryError::AlreadySet)?;
    Ok(Telemetry(provider))
}

fn traces(service: &'static str, endpoint: &str) -> Result<SdkTracerProvider, TelemetryError> {
    use opentelemetry_otlp::WithExportConfig as _;
    let exporter =
        opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
    let resource = opentelemetry_sdk::Resource::builder().with_service_name(service).build();
    Ok(SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn what_mls_says_of_members_is_never_logged() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let config = TelemetryConfig { log: Some("trace,openmls=trace".to_owned()), ..Default::default() };
        init_to("test", &config, Arc::new(file.reopen().unwrap())).unwrap().shutdown();
        assert!(matches!(init("test", &config), Err(TelemetryError::AlreadySet)));
        tracing::trace!(target: "openmls::group::mls_group", "members");
        tracing::debug!(target: "openmls_sqlite_storage", "rows");
        tracing::trace!(target: "h2::codec", "frames");
        tracing::debug!("ours");
        let logged = std::fs::read_to_string(file.path()).unwrap();
        let logged: Vec<_> = logged.lines().filter_map(|line| line.split_whitespace().last()).collect();
        assert_eq!(logged, ["frames", "ours"]);
    }
}
