//! Logs and traces: set up first, flushed last.

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
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

/// Sets up the process's logs (to standard error) and traces.
///
/// # Errors
/// Directives or endpoint do not parse, or it was done before.
pub fn init(service: &'static str, config: &TelemetryConfig) -> Result<Telemetry, TelemetryError> {
    let filter = EnvFilter::try_new(config.log.as_deref().unwrap_or("warn"))?;
    let text = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(true);
    let log = if config.json { text.json().boxed() } else { text.boxed() };
    let provider = config.otlp_endpoint.as_deref().map(|endpoint| traces(service, endpoint)).transpose()?;
    let spans = provider.as_ref().map(|p| tracing_opentelemetry::layer().with_tracer(p.tracer(service)));
    tracing_subscriber::registry()
        .with(log.with_filter(filter))
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
