//! The commands that order something for one client: `swap`, `pin`, `unpin`, `set priority|weight|limit`.

use clap::{Args, Subcommand};
use nvshare_agent_core::change::Change;
use nvshare_agent_core::order::{Priority, Weight, What};
use nvshare_agent_core::value;
use nvshare_common::bytes::Bytes;

use super::args::{AdminArgs, examples};
use super::client::{AskError, Client};
use super::command::{CommandError, ask, print};
use super::who::Who;
use super::{Request, Response};

/// `swap`.
#[derive(Debug, Args)]
#[command(after_help = examples(&[
    ("nvshare-agent swap out 3", "client 3 stops, and all its memory moves to the host"),
    ("nvshare-agent swap in 3", "it takes its turns again"),
]))]
pub struct SwapArgs {
    /// Where the agent is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Which way.
    #[command(subcommand)]
    pub way: Way,
}

/// `swap out` or `swap in`.
#[derive(Debug, Subcommand)]
pub enum Way {
    /// Stop a client, move all its memory to the host, and keep it there until `swap in`
    ///
    /// Its calls wait meanwhile; it loses nothing. What cannot be moved (`UNSWAPPABLE` in `status`) stays. A pinned client
    /// and one that does not yield are refused. The order holds until `swap in`, also when the agent restarts.
    #[command(after_help = examples(&[
        ("nvshare-agent swap out 3", "by the agent's number"),
        ("nvshare-agent swap out pid:1234", "by its process"),
    ]))]
    Out(ClientArgs),
    /// Let a client that was swapped out by order take its turns again
    #[command(after_help = examples(&[
        ("nvshare-agent swap in 3", "it gets its memory back when its turn comes, or at once if there is room"),
    ]))]
    In(ClientArgs),
}

/// A client.
#[derive(Debug, Args)]
pub struct ClientArgs {
    /// The agent's number for the client (see `nvshare-agent status`), or pid:1234
    #[arg(value_name = "CLIENT")]
    pub client: Who,
}

/// `pin` and `unpin`.
#[derive(Debug, Args)]
#[command(after_help = examples(&[
    ("nvshare-agent pin 3", "client 3 runs whenever it wants to, and is never swapped out"),
    ("nvshare-agent unpin 3", "it takes turns like any other"),
]))]
pub struct PinArgs {
    /// Where the agent is.
    #[command(flatten)]
    pub admin: AdminArgs,
    /// Which client.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// What `set` can set besides `NAME=VALUE`.
#[derive(Debug, Subcommand)]
pub enum SetWhat {
    /// Change the settings of leases
    #[command(after_help = examples(&[
        ("nvshare-agent set lease floor=200ms ceiling=30s", "all of them or none"),
        ("nvshare-agent set lease factor=40", "a lease lasts 40 times what a switch costs"),
    ]))]
    Lease {
        /// floor=200ms, ceiling=60s or factor=40
        #[arg(required = true, value_name = "NAME=VALUE", value_parser = lease)]
        changes: Vec<Change>,
    },
    /// Let a client run before others, or after them: high, normal or low
    ///
    /// A client of a higher priority that wants to run ends the lease of a lower one as soon as that has lasted for
    /// lease-floor. Lower ones still get a lease now and then: see docs/operations.md.
    #[command(after_help = examples(&[
        ("nvshare-agent set priority 3 high", "before everybody else"),
        ("nvshare-agent set priority pid:1234 normal", "as who says nothing"),
    ]))]
    Priority {
        /// The client: the agent's number for it, or pid:1234
        #[arg(value_name = "CLIENT")]
        client: Who,
        /// high, normal or low
        #[arg(value_name = "PRIORITY")]
        priority: Priority,
    },
    /// Give a client a larger or smaller share of the time among clients of its priority
    #[command(after_help = examples(&[
        ("nvshare-agent set weight 3 2", "twice the time of a client of weight 1"),
    ]))]
    Weight {
        /// The client: the agent's number for it, or pid:1234
        #[arg(value_name = "CLIENT")]
        client: Who,
        /// From 0.01 to 100; 1 is what everybody has who says nothing
        #[arg(value_name = "WEIGHT")]
        weight: Weight,
    },
    /// Limit how much of each device a client may have
    ///
    /// The client sees the limit as the size of the device (`cuMemGetInfo`), and allocations beyond it fail with out of
    /// memory. What it has already is not taken from it.
    #[command(after_help = examples(&[
        ("nvshare-agent set limit 3 8G", "at most 8 GiB of each device"),
        ("nvshare-agent set limit 3 none", "whatever the device has"),
    ]))]
    Limit {
        /// The client: the agent's number for it, or pid:1234
        #[arg(value_name = "CLIENT")]
        client: Who,
        /// A size such as 8G or 512M, or none
        #[arg(value_name = "BYTES", value_parser = limit)]
        limit: Limit,
    },
}

/// A limit, or none: a type of its own, because `Option` means something else to the parser of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit(pub Option<Bytes>);

fn limit(text: &str) -> Result<Limit, String> {
    if text.trim() == "none" {
        return Ok(Limit(None));
    }
    value::some_bytes(text).map(|bytes| Limit(Some(bytes))).map_err(|expected| format!("{expected}, or none"))
}

fn lease(text: &str) -> Result<Change, String> {
    let known = ["floor=", "ceiling=", "factor="];
    if !known.iter().any(|name| text.starts_with(name)) {
        return Err("expected floor=200ms, ceiling=60s or factor=40".to_owned());
    }
    format!("lease-{text}").parse()
}

/// `nvshare-agent swap`.
pub fn swap(args: &SwapArgs) -> Result<(), CommandError> {
    match &args.way {
        Way::Out(who) => order(&args.admin, &who.client, What::SwapOut),
        Way::In(who) => order(&args.admin, &who.client, What::SwapIn),
    }
}

/// `nvshare-agent pin` (`true`) and `unpin`.
pub fn pin(args: &PinArgs, pinned: bool) -> Result<(), CommandError> {
    order(&args.admin, &args.client.client, What::Pin(pinned))
}

/// `nvshare-agent set priority`, `weight` and `limit`; `set lease` is no order, its changes come back.
pub(super) fn set<'a>(admin: &AdminArgs, what: &'a SetWhat) -> Result<&'a [Change], CommandError> {
    match what {
        SetWhat::Lease { changes } => return Ok(changes),
        SetWhat::Priority { client, priority } => order(admin, client, What::Priority(*priority)),
        SetWhat::Weight { client, weight } => order(admin, client, What::Weight(*weight)),
        SetWhat::Limit { client, limit } => order(admin, client, What::Limit(limit.0)),
    }?;
    Ok(&[])
}

fn order(admin: &AdminArgs, who: &Who, order: What) -> Result<(), CommandError> {
    let mut agent = Client::connect(&admin.admin_socket)?;
    let client = who.resolve(&ask(&mut agent)?.0.clients)?;
    match agent.ask(&Request::Order { client, order }) {
        Ok(Response::Ordered) => print(&format!(
            "client {}: {}; this holds until it ends, or is ordered otherwise\n",
            client.0,
            done(order)
        )),
        Ok(other) => Err(CommandError::Answer(format!("{other:?}"))),
        Err(AskError::Refused(why)) => {
            // It may have ended in between.
            who.resolve(&ask(&mut agent)?.0.clients)?;
            Err(AskError::Refused(why).into())
        }
        Err(error) => Err(error.into()),
    }
}

fn done(order: What) -> String {
    match order {
        What::SwapOut => "is stopped and swapped out".to_owned(),
        What::SwapIn => "takes its turns again".to_owned(),
        What::Pin(true) => "is pinned: it is never swapped out".to_owned(),
        What::Pin(false) => "is not pinned".to_owned(),
        What::Priority(priority) => format!("has {priority} priority"),
        What::Weight(weight) => format!("has the weight {}", weight.value()),
        What::Limit(Some(limit)) => format!("may have at most {limit} of each device"),
        What::Limit(None) => "may have what each device has".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_size_or_none() {
        assert_eq!(limit("8G"), Ok(Limit(Some(Bytes(8 << 30)))));
        assert_eq!(limit("none"), Ok(Limit(None)));
        for text in ["0", "much", "8X"] {
            assert!(limit(text).unwrap_err().contains("or none"), "{text}");
        }
    }

    #[test]
    fn settings_of_leases_are_those_with_the_long_names() {
        assert_eq!(lease("floor=200ms"), "lease-floor=200ms".parse());
        assert_eq!(lease("factor=12"), "lease-factor=12".parse());
        for text in ["reserve=1G", "floor", "-floor=1s"] {
            assert!(lease(text).unwrap_err().contains("ceiling=60s"), "{text}");
        }
    }
}
