//! `nvshare-agent`: read the command line, then ask a running agent, or be one: build it, say what is listening, wait
//! for a signal, stop in order.

use std::fmt::Display;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use nvshare_agent::admin::command::{self, CommandError};
use nvshare_agent::admin::{orders, top};
use nvshare_agent::agent::Agent;
use nvshare_agent::config::file::{self, Origin, ParseError, Parsed};
use nvshare_agent::config::{Command, Config, ConfigArgs, EXIT_USAGE, show};
use nvshare_agent::{install, log};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing::{error, info, warn};

/// How long stopping may take; then the process ends all the same. Clients lose nothing either way.
const STOPPING: Duration = Duration::from_secs(10);
/// How long what nobody waits for (connections, sessions) may take to end after that.
const LEAVING: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let Parsed { cli, origins } = match file::parse(std::env::args_os().collect(), Path::new(file::FILE)) {
        Ok(parsed) => parsed,
        Err(ParseError::Line(error)) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
        Err(error) => {
            eprintln!("nvshare-agent: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match cli.command {
        None => run(&cli.config),
        Some(Command::Config(args)) => config(&args, &origins),
        Some(Command::Run(config)) => run(&config),
        Some(Command::Probes(args)) => answer(command::probes(&args)),
        Some(Command::InstallShim(args)) => end(install::command(&args)),
        Some(Command::Status(args)) => answer(command::status(&args)),
        Some(Command::Set(args)) => answer(command::set(&args)),
        Some(Command::Top(args)) => answer(top::top(&args)),
        Some(Command::Swap(args)) => answer(orders::swap(&args)),
        Some(Command::Pin(args)) => answer(orders::pin(&args, true)),
        Some(Command::Unpin(args)) => answer(orders::pin(&args, false)),
    }
}

/// Shows the configuration that `run` would have, or refuses it as `run` would.
fn config(args: &ConfigArgs, origins: &[Origin]) -> ExitCode {
    if let Err(error) = args.config.check() {
        eprintln!("nvshare-agent: {error}");
        return ExitCode::from(EXIT_USAGE);
    }
    end(command::print(&show::show(origins, args.json)))
}

fn run(config: &Config) -> ExitCode {
    if let Err(error) = config.check() {
        eprintln!("nvshare-agent: {error}");
        return ExitCode::from(EXIT_USAGE);
    }
    log::begin(&config.log);
    raise_open_files();
    // Two threads: one for the conductor, one for whoever asks about it.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return end(Err(format!("cannot start a runtime: {error}"))),
    };
    let result = runtime.block_on(live(config));
    runtime.shutdown_timeout(LEAVING);
    end(result)
}

async fn live(config: &Config) -> anyhow::Result<()> {
    // Installed first: a signal during the start stops in order too.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let mut agent = Agent::start(config).await?;
    info!(
        release = env!("CARGO_PKG_VERSION"),
        clients = %config.control.socket.display(),
        admin = %config.admin.admin_socket.display(),
        http = %agent.address(),
        "nvshare-agent is listening"
    );

    let result = tokio::select! {
        _ = terminate.recv() => { info!("SIGTERM: stopping; clients go on with what they hold"); Ok(()) }
        _ = interrupt.recv() => { info!("SIGINT: stopping; clients go on with what they hold"); Ok(()) }
        why = agent.failed() => Err(why.into()),
    };
    tokio::select! {
        () = agent.stop() => {}
        // A file system that does not answer can hold the observer up; the kernel takes its probes away all the same.
        () = tokio::time::sleep(STOPPING) => {
            warn!(seconds = STOPPING.as_secs(), "not everything has stopped: ending all the same");
        }
        _ = terminate.recv() => info!("SIGTERM again: ending at once"),
        _ = interrupt.recv() => info!("SIGINT again: ending at once"),
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

/// The end of a command that asked the running agent.
fn answer(result: Result<(), CommandError>) -> ExitCode {
    let Err(why) = result else { return ExitCode::SUCCESS };
    eprintln!("nvshare-agent: {why}");
    ExitCode::from(why.exit_status())
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
