//! What the eBPF programs log (rare things only), as events of ours.

/// Takes aya-log's lines.
pub(super) struct KernelLog;

impl log::Log for KernelLog {
    fn enabled(&self, _metadata: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        match record.level() {
            log::Level::Error | log::Level::Warn => tracing::warn!("eBPF: {}", record.args()),
            log::Level::Info => tracing::info!("eBPF: {}", record.args()),
            log::Level::Debug | log::Level::Trace => tracing::debug!("eBPF: {}", record.args()),
        }
    }

    fn flush(&self) {}
}
