//! How an administrator names a client, and which one is meant.

use std::fmt;
use std::str::FromStr;

use nvshare_agent_core::snapshot::{Activity, Client};
use nvshare_common::ids::ClientId;

/// A client as it is written on a command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Who {
    /// `3`: the agent's number for it.
    Number(u64),
    /// `pid:1234`: its process, as the node numbers it.
    Pid(u32),
}

/// Nobody is meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no client {who}: {there}")]
pub struct NoSuchClient {
    who: Who,
    there: String,
}

impl Who {
    /// Which of `clients` is meant. One that ended is nobody, its pid may be another's by now.
    pub fn resolve(&self, clients: &[Client]) -> Result<ClientId, NoSuchClient> {
        let living = || clients.iter().filter(|client| client.activity != Activity::Exited);
        let found = living().find(|client| match self {
            Who::Number(number) => client.client.0 == *number,
            Who::Pid(pid) => client.process.pid == *pid,
        });
        found.map(|client| client.client).ok_or_else(|| {
            let names: Vec<String> =
                living().map(|client| format!("{} (pid:{})", client.client.0, client.process.pid)).collect();
            let there = match names.as_slice() {
                [] => "no client is connected".to_owned(),
                names => format!("there are {}; `nvshare-agent status` shows them", names.join(", ")),
            };
            NoSuchClient { who: self.clone(), there }
        })
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Number(number) => write!(f, "{number}"),
            Who::Pid(pid) => write!(f, "pid:{pid}"),
        }
    }
}

impl FromStr for Who {
    type Err = String;
    fn from_str(text: &str) -> Result<Who, String> {
        let wrong = || {
            "expected the agent's number for the client, such as 3 (see `nvshare-agent status`), or pid:1234"
                .to_owned()
        };
        match text.strip_prefix("pid:") {
            Some(pid) => pid.parse().map(Who::Pid).map_err(|_| wrong()),
            None => text.parse().map(Who::Number).map_err(|_| wrong()),
        }
    }
}

#[cfg(test)]
mod tests {
    use nvshare_agent_core::snapshot::Totals;

    use super::*;

    fn client(number: u64, pid: u32, activity: &str) -> Client {
        serde_json::from_value(serde_json::json!({
            "client": number, "process": {"pid": pid, "start": 1}, "name": "python3", "cgroup": "/", "shim": "0.1.0",
            "activity": activity, "waiting_seconds": 0.0, "idle_seconds": 0.0, "lease_seconds": null,
            "virtual_runtime_seconds": 0.0, "stalls": 0, "notes": [], "arenas": 0, "arena_bytes": 0, "devices": [],
            "totals": Totals::default(),
        }))
        .unwrap()
    }

    #[test]
    fn a_client_is_named_by_its_number_or_its_pid() {
        let clients = [client(3, 77, "running"), client(77, 5, "waiting")];
        let resolve = |text: &str| text.parse::<Who>().unwrap().resolve(&clients);
        assert_eq!(resolve("77"), Ok(ClientId(77)));
        assert_eq!(resolve("pid:77"), Ok(ClientId(3)));
        let error = resolve("4").unwrap_err().to_string();
        assert!(error.contains("no client 4") && error.contains("3 (pid:77), 77 (pid:5)"), "{error}");
    }

    #[test]
    fn the_pid_of_a_client_that_ended_is_nobodys() {
        let clients = [client(3, 77, "exited")];
        let error = Who::Pid(77).resolve(&clients).unwrap_err().to_string();
        assert!(error.contains("no client is connected"), "{error}");
    }

    #[test]
    fn a_name_that_makes_no_sense_says_what_is_expected() {
        for text in ["", "python", "pid:", "pid:x", "-1", "pid:99999999999"] {
            assert!(text.parse::<Who>().unwrap_err().contains("pid:1234"), "{text}");
        }
    }
}
