//! What is said on the administrator's socket.

use nvshare_agent_core::change::Change;
use nvshare_agent_core::order::What;
use nvshare_common::ids::ClientId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::health::Readiness;

/// The longest request.
pub const MAX_LINE_BYTES: usize = 64 << 10;

/// One line to the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// How are things?
    Status,
    /// Change settings, all of them or none.
    Set {
        /// As on the command line: `lease-floor=200ms`.
        #[serde(deserialize_with = "super::change::all")]
        changes: Vec<Change>,
    },
    /// Order something for one client.
    Order {
        /// The agent's number for it.
        client: ClientId,
        /// `"swap_out"`, `"swap_in"`, `{"pin":true}`, `{"priority":"high"}`, `{"weight":2.0}` or `{"limit":null}`.
        order: What,
    },
}

/// One line from the agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Response {
    /// To `Status`.
    State {
        /// What `/api/v1/state` shows.
        state: Value,
        /// What `/readyz` shows.
        readiness: Readiness,
    },
    /// To `Set`: the settings as they are now.
    Settings {
        /// What `/api/v1/state` shows under `settings`.
        settings: Value,
    },
    /// To `Order`: it is booked, and obeyed from now on.
    Ordered,
    /// The request was refused; nothing was changed.
    Error {
        /// The reason, and what was expected.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_of_the_first_release_answers_is_read() {
        let missing = r#"{"part":"uprobes","why":"no BTF","needed":false}"#;
        for line in [
            &format!(
                r#"{{"answer":"state","state":{{}},"readiness":{{"ready":true,"missing":[{missing}]}}}}"#
            ),
            r#"{"answer":"settings","settings":{}}"#,
            r#"{"answer":"ordered"}"#,
            r#"{"answer":"error","why":"7: no client is connected"}"#,
        ] {
            let answer: Response = serde_json::from_str(line).unwrap();
            assert_eq!(serde_json::to_string(&answer).unwrap(), line);
        }
    }

    #[test]
    fn requests_are_the_documented_lines() {
        assert_eq!(serde_json::to_string(&Request::Status).unwrap(), r#"{"request":"status"}"#);
        let set = r#"{"request":"set","changes":["lease-floor=200ms"]}"#;
        let request: Request = serde_json::from_str(set).unwrap();
        assert_eq!(serde_json::to_string(&request).unwrap(), set);
        let error = serde_json::from_str::<Request>(r#"{"request":"set","changes":["x=1"]}"#).unwrap_err();
        assert!(error.to_string().contains("lease-ceiling"), "{error}");
        for order in [
            r#""swap_out""#,
            r#""swap_in""#,
            r#"{"pin":true}"#,
            r#"{"priority":"high"}"#,
            r#"{"weight":2.0}"#,
            r#"{"limit":null}"#,
            r#"{"limit":4096}"#,
        ] {
            let line = format!(r#"{{"request":"order","client":3,"order":{order}}}"#);
            let request: Request = serde_json::from_str(&line).unwrap();
            assert_eq!(serde_json::to_string(&request).unwrap(), line);
        }
        let wrong = r#"{"request":"order","client":3,"order":{"weight":0.0}}"#;
        let error = serde_json::from_str::<Request>(wrong).unwrap_err();
        assert!(error.to_string().contains("0.01 to 100"), "{error}");
    }
}
