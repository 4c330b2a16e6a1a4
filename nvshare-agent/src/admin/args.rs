//! What the command line says to `status`, `set`, `top` and `probes`, and where the administrator's socket is.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use nvshare_agent_core::change::Change;
use nvshare_agent_core::value;

use super::orders::SetWhat;

/// Where the agent listens for its administrator unless told otherwise.
pub const ADMIN_SOCKET: &str = "/run/nvshare-admin/admin.sock";

/// What scripts can tell from the exit status of a command that asks the running agent.
pub const EXIT_STATUSES: &str = "Exit status: 0 done, 1 refused or failed, 2 no such client, 3 the agent cannot be \
                                 reached, 4 the agent is not ready (only by `status --check`), 64 the command line \
                                 makes no sense.";

/// Where the agent answers its administrator.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub struct Options {
    /// Socket for the administrator; its directory is created with mode 0700 and never mounted anywhere
    #[arg(long, value_name = "PATH", env = "NVSHARE_AGENT_ADMIN_SOCKET", default_value = ADMIN_SOCKET,
        value_parser = value::socket_path)]
    pub admin_socket: PathBuf,
}

/// Where the running agent is.
#[derive(Clone, Debug, Args)]
pub struct AdminArgs {
    /// The administrator's socket of the running agent
    #[arg(long, value_name = "PATH", env = "NVSHARE_AGENT_ADMIN_SOCKET", default_value = ADMIN_SOCKET,
        value_parser = value::socket_path, global = true)]
    pub admin_socket: PathBuf,
}

/// `status`.
#[derive(Debug, Args)]
#[command(after_help = status_examples())]
pub struct StatusArgs {
    /// Where the agent is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Print the whole state as JSON
    #[arg(long)]
    pub json: bool,
    /// End with status 4 when the agent is not ready
    #[arg(long)]
    pub check: bool,
}

/// `set`.
#[derive(Debug, Args)]
#[command(subcommand_negates_reqs = true, after_help = set_examples())]
pub struct SetArgs {
    /// Where the agent is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// What to change: lease-floor=200ms, lease-ceiling=60s, lease-factor=40, reserve=256M, host-memory=64G,
    /// log=debug
    #[arg(required = true, value_name = "NAME=VALUE", value_parser = super::change::read)]
    pub changes: Vec<Change>,
    /// What else to set.
    #[command(subcommand)]
    pub what: Option<SetWhat>,
}

/// `top`.
#[derive(Debug, Args)]
#[command(after_help = top_examples())]
pub struct TopArgs {
    /// Where the agent is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Time between two tables
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = value::duration)]
    pub every: Duration,
    /// Print this many tables and end; without it, and on a terminal, the whole screen is used
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
}

/// `probes`.
#[derive(Debug, Args)]
#[command(after_help = probes_examples())]
pub struct ProbesArgs {
    /// Where the agent is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Print everything known about the probes as JSON
    #[arg(long)]
    pub json: bool,
}

/// Examples and exit statuses below the help of a command.
pub(crate) fn examples(lines: &[(&str, &str)]) -> String {
    let width = lines.iter().map(|(command, _)| command.len()).max().unwrap_or_default();
    let lines: Vec<String> =
        lines.iter().map(|(command, what)| format!("  {command:width$}  # {what}")).collect();
    format!("Examples:\n{}\n\n{EXIT_STATUSES}", lines.join("\n"))
}

fn status_examples() -> String {
    examples(&[
        ("nvshare-agent status", "for people"),
        ("nvshare-agent status --check", "the same; exit status 4 when the agent is not ready"),
        ("nvshare-agent status --json | jq '.state.clients[].name'", "for programs"),
    ])
}

fn set_examples() -> String {
    examples(&[
        ("nvshare-agent set lease-floor=200ms lease-ceiling=30s", "all of them or none"),
        ("nvshare-agent set lease floor=200ms", "the same in other words"),
        ("nvshare-agent set log=debug", "more lines in the log, until log=info"),
        ("nvshare-agent set priority 3 high", "for client 3"),
        ("nvshare-agent set weight 3 2", "twice the time of others"),
        ("nvshare-agent set limit 3 8G", "at most 8 GiB of each device"),
    ])
}

fn top_examples() -> String {
    let keys = "Keys: q quit, arrows choose a client, s sort, ? help. Where the output is no terminal, plain tables are \
                printed.\n\n";
    let lines = examples(&[
        ("nvshare-agent top", "the whole terminal, until q"),
        ("nvshare-agent top --every 5s --count 12 > a-minute.txt", "tables, for later"),
    ]);
    format!("{keys}{lines}")
}

fn probes_examples() -> String {
    examples(&[
        ("nvshare-agent probes", "for people"),
        ("nvshare-agent probes --json | jq '.attachments[] | {path, functions, refused}'", "for programs"),
    ])
}
