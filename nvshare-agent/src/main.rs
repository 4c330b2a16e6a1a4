//! `nvshare-agent`: read the command line, then ask a running agent, or be one: build it, say what is listening, wait
//! for a signal, stop in order.

use std::fmt::Display;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use nvshare_agent::admin::command;
use nvshare_agent::agent::Agent;
use nvshare_agent::config::{Cli, Command, Config, EXIT_USAGE, LogFormat};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};
use tracing_subscriber::EnvFilter;

/// How long stopping may take; then the process ends all the same. Clients lose nothing either way.
const STOPPING: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    match cli.command {
        None => run(&cli.config),
        Some(Command::Run(config)) => run(&config),
        Some(Command::Status(args)) => end(command::status(&args)),
        Some(Command::Set(args)) => end(command::set(&args)),
        Some(Command::Top(args)) => end(command::top(&args)),
    }
}

fn run(config: &Config) -> ExitCode {
    if let Err(error) = config.check() {
        eprintln!("nvshare-agent: {error}");
        return ExitCode::from(EXIT_USAGE);
    }
    log(config);
    raise_open_files();
    // Two threads: one for the conductor, one for whoever asks about it.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return end(Err(format!("cannot start a runtime: {error}"))),
    };
    let result = runtime.block_on(live(config));
    runtime.shutdown_timeout(STOPPING);
    end(result)
}

async fn live(config: &Config) -> anyhow::Result<()> {
    // Installed first: a signal during the start stops in order too.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let mut agent = Agent::start(config).await?;
    info!(
        release = env!("CARGO_PKG_VERSION"),
        clients = %config.socket.display(),
        admin = %config.admin_socket.display(),
        http = %agent.address(),
        "nvshare-agent is listening"
    );

    let result = tokio::select! {
        _ = terminate.recv() => { info!("SIGTERM: stopping; clients go on with what they hold"); Ok(()) }
        _ = interrupt.recv() => { info!("SIGINT: stopping; clients go on with what they hold"); Ok(()) }
        why = agent.failed() => Err(why.into()),
    };
    // A file system that does not answer can hold the observer up; the kernel takes its probes away all the same.
    if tokio::time::timeout(STOPPING, agent.stop()).await.is_err() {
        error!("stopping took longer than {STOPPING:?}: ending all the same");
    }
    result
}

/// Each client costs a few descriptors: as many as may be.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        warn!(%error, limit = limit.current, "cannot raise the number of open files");
    }
}

fn log(config: &Config) {
    // The filter was parsed once already, when the command line was read.
    let filter = EnvFilter::builder().parse_lossy(&config.log);
    // Whoever reads the log may go away: its internal errors would be printed to the same broken pipe, and panic.
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .log_internal_errors(false);
    match config.log_format {
        LogFormat::Text => lines.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().init(),
    }
}

fn end<E: Display>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) if tracing::dispatcher::has_been_set() => {
            error!("{why}");
            ExitCode::FAILURE
        }
        Err(why) => {
            eprintln!("nvshare-agent: {why}");
            ExitCode::FAILURE
        }
    }
}
