//! The commands that ask a running agent once: `status`, `set`, `probes`. `top` is in a folder of its own.

use std::io::{self, Write};

use nvshare_agent_core::change::Change;
use nvshare_agent_core::snapshot::State;

use super::args::{ProbesArgs, SetArgs, StatusArgs};
use super::client::{AskError, Client};
use super::orders;
use super::who::NoSuchClient;
use super::{Request, Response, view};
use crate::health::Readiness;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The agent did not answer, or refused.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The answer is not one to this question, or of another release.
    #[error("the agent's answer makes no sense to this release: {0}; use the agent's own binary")]
    Answer(String),
    /// Nobody is meant.
    #[error(transparent)]
    NoClient(#[from] NoSuchClient),
    /// Asked for by `status --check`.
    #[error("the agent is not ready: {0}")]
    NotReady(String),
    /// Nobody reads the output.
    #[error("cannot write the answer: {0}")]
    Output(#[from] io::Error),
}

impl CommandError {
    /// The exit status that scripts see: [`super::args::EXIT_STATUSES`].
    pub fn exit_status(&self) -> u8 {
        match self {
            CommandError::NoClient(_) => 2,
            CommandError::Ask(
                AskError::NoAgent { .. } | AskError::Forbidden { .. } | AskError::Silent { .. },
            ) => 3,
            CommandError::NotReady(_) => 4,
            _ => 1,
        }
    }
}

/// `nvshare-agent status`.
pub fn status(args: &StatusArgs) -> Result<(), CommandError> {
    let mut client = Client::connect(&args.admin.admin_socket)?;
    let readiness = if args.json {
        let (state, readiness) = raw(&mut client)?;
        let all = serde_json::json!({"state": state, "readiness": readiness});
        print(&format!("{all:#}\n"))?;
        readiness
    } else {
        let (state, readiness) = ask(&mut client)?;
        print(&view::text(&state, &readiness, None))?;
        readiness
    };
    if readiness.ready || !args.check {
        return Ok(());
    }
    let needed = readiness.missing.iter().filter(|missing| missing.needed);
    let why: Vec<String> =
        needed.map(|missing| format!("{}: {}", missing.part.name(), missing.why)).collect();
    Err(CommandError::NotReady(why.join("; ")))
}

/// `nvshare-agent probes`.
pub fn probes(args: &ProbesArgs) -> Result<(), CommandError> {
    let mut client = Client::connect(&args.admin.admin_socket)?;
    let (state, _) = ask(&mut client)?;
    if args.json {
        return print(&format!("{:#}\n", serde_json::json!(state.observer)));
    }
    print(&view::probes(&state.observer))
}

/// `nvshare-agent set`.
pub fn set(args: &SetArgs) -> Result<(), CommandError> {
    let changes = match &args.what {
        Some(what) => orders::set(&args.admin, what)?,
        None => &args.changes,
    };
    if changes.is_empty() {
        return Ok(());
    }
    let mut client = Client::connect(&args.admin.admin_socket)?;
    match client.ask(&Request::Set { changes: changes.to_vec() })? {
        Response::Settings { .. } => {
            let changes: Vec<String> = changes.iter().map(Change::to_string).collect();
            print(&format!("{}; this holds until the agent restarts\n", changes.join(", ")))
        }
        other => Err(CommandError::Answer(format!("{other:?}"))),
    }
}

pub(super) fn ask(client: &mut Client) -> Result<(State, Readiness), CommandError> {
    let (state, readiness) = raw(client)?;
    let state = serde_json::from_value(state).map_err(|error| CommandError::Answer(error.to_string()))?;
    Ok((state, readiness))
}

pub(super) fn raw(client: &mut Client) -> Result<(serde_json::Value, Readiness), CommandError> {
    match client.ask(&Request::Status)? {
        Response::State { state, readiness } => Ok((state, readiness)),
        other => Err(CommandError::Answer(format!("{other:?}"))),
    }
}

/// Prints an answer. A closed pipe (`status | head`) is no error.
pub fn print(text: &str) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        result => Ok(result?),
    }
}
