//! What `top` shows: the latest look at the agent, in the order the reader chose.

use std::cmp::Reverse;
use std::time::{Duration, Instant};

use nvshare_agent_core::snapshot::{Activity, Client, ClientDevice, State};
use nvshare_common::bytes::Bytes;
use serde_json::Value;

use crate::admin::view::{self, Since};
use crate::health::Readiness;

/// One answer of the agent.
#[derive(Clone, Debug)]
pub(super) struct Look {
    pub(super) state: State,
    pub(super) readiness: Readiness,
    pub(super) at: Instant,
    rows: Vec<Row>,
}

/// One client.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Row {
    pub(super) client: u64,
    pub(super) pid: u32,
    /// Namespace, pod and container where they are known, else the container's id, if any.
    pub(super) owner: String,
    pub(super) name: String,
    pub(super) activity: Activity,
    /// For how long it waits or does nothing.
    pub(super) lasts: f64,
    pub(super) lease: Option<f64>,
    pub(super) orders: String,
    pub(super) needed: Bytes,
    pub(super) resident: Bytes,
    pub(super) swapped: Bytes,
    pub(super) notes: Vec<String>,
}

impl Look {
    /// Reads an answer.
    pub(super) fn new(state: Value, readiness: Readiness) -> Result<Look, serde_json::Error> {
        let state: State = serde_json::from_value(state)?;
        let rows = state.clients.iter().map(Row::new).collect();
        Ok(Look { state, readiness, at: Instant::now(), rows })
    }
}

impl Row {
    fn new(client: &Client) -> Row {
        let sum = |of: fn(&ClientDevice) -> Bytes| client.devices.iter().map(of).sum();
        let running = client.activity == Activity::Running;
        let orders = client.orders();
        Row {
            client: client.client.0,
            pid: client.process.pid,
            owner: view::printable(&client.owner.to_string()),
            name: view::printable(&client.name),
            activity: client.activity,
            lasts: if running { 0.0 } else { client.waiting_seconds.max(client.idle_seconds) },
            lease: client.lease_seconds,
            orders: if orders.is_empty() { "-".to_owned() } else { orders },
            needed: sum(|held| held.needed),
            resident: sum(|held| held.resident),
            swapped: sum(|held| held.swapped),
            notes: client.notes.iter().map(|note| view::printable(note)).collect(),
        }
    }
}

/// What the table is sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    /// The agent's number.
    #[default]
    Client,
    /// Who runs first, then who waits, longest first.
    Activity,
    /// Most on the card first.
    Resident,
    /// Most on the host first.
    Swapped,
    /// By namespace, pod and container.
    Owner,
}

impl Sort {
    const ALL: [Sort; 5] = [Sort::Client, Sort::Activity, Sort::Resident, Sort::Swapped, Sort::Owner];

    /// The one after this.
    pub(super) fn next(self) -> Sort {
        let place = Sort::ALL.iter().position(|sort| *sort == self).unwrap_or_default();
        Sort::ALL[(place + 1) % Sort::ALL.len()]
    }

    /// For the reader.
    pub(super) fn name(self) -> &'static str {
        match self {
            Sort::Client => "number",
            Sort::Activity => "activity",
            Sort::Resident => "resident",
            Sort::Swapped => "swapped",
            Sort::Owner => "pod",
        }
    }
}

/// Everything on the screen.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) last: Option<Look>,
    /// What moved between the last two looks.
    pub(super) movement: Option<String>,
    /// Why there is no newer look.
    pub(super) problem: Option<String>,
    pub(super) sort: Sort,
    pub(super) reversed: bool,
    pub(super) help: bool,
    /// The client under the cursor: it stays with the client when the order changes.
    selected: Option<u64>,
}

impl Model {
    /// A new look, or why there is none.
    pub(super) fn look(&mut self, look: Result<Look, String>) {
        match look {
            Ok(look) => {
                let time = |last: &Look| look.at.checked_duration_since(last.at).unwrap_or(Duration::ZERO);
                self.movement = self
                    .last
                    .as_ref()
                    .map(|last| view::movement(&look.state, &Since { state: &last.state, time: time(last) }));
                self.problem = None;
                self.last = Some(look);
            }
            Err(why) => (self.problem, self.movement) = (Some(why), None),
        }
    }

    /// The clients in their order.
    pub(super) fn rows(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.last.iter().flat_map(|look| &look.rows).collect();
        match self.sort {
            Sort::Client => rows.sort_by_key(|row| row.client),
            Sort::Activity => rows.sort_by(|a, b| {
                let place = |row: &Row| Activity::ALL.iter().position(|activity| *activity == row.activity);
                place(a).cmp(&place(b)).then(b.lasts.total_cmp(&a.lasts)).then(a.client.cmp(&b.client))
            }),
            Sort::Resident => rows.sort_by_key(|row| (Reverse(row.resident), row.client)),
            Sort::Swapped => rows.sort_by_key(|row| (Reverse(row.swapped), row.client)),
            Sort::Owner => rows.sort_by(|a, b| a.owner.cmp(&b.owner).then(a.client.cmp(&b.client))),
        }
        if self.reversed {
            rows.reverse();
        }
        rows
    }

    /// Where the cursor is among `rows`.
    pub(super) fn place(&self, rows: &[&Row]) -> Option<usize> {
        let selected = self.selected?;
        rows.iter().position(|row| row.client == selected)
    }

    /// Moves the cursor, not beyond the ends.
    pub(super) fn step(&mut self, by: isize) {
        let rows = self.rows();
        let to = match self.place(&rows) {
            None if by < 0 => rows.len().saturating_sub(1),
            None => 0,
            Some(place) => place.saturating_add_signed(by).min(rows.len().saturating_sub(1)),
        };
        self.selected = rows.get(to).map(|row| row.client);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in super::super) fn look(clients: &[(u64, &str, u64)]) -> Look {
        let clients: Vec<Value> = clients
            .iter()
            .map(|(client, activity, resident)| {
                serde_json::json!({
                    "client": client, "process": {"pid": 70 + client, "start": 1}, "name": "py\u{1b}thon",
                    "cgroup": "/", "shim": "0.1.0", "activity": activity, "waiting_seconds": client,
                    "idle_seconds": 0.0, "lease_seconds": null, "virtual_runtime_seconds": 0.0, "stalls": 0,
                    "notes": ["waits for host memory"], "arenas": 0, "arena_bytes": 0,
                    "devices": [{"uuid": "GPU-1", "granted": 0, "needed": resident, "limit": 0, "resident": resident,
                        "swapped": 0, "shadow": 0, "unswappable": 0, "unswappable_reasons": {}, "measured": null}],
                    "totals": nvshare_agent_core::snapshot::Totals::default(),
                    "owner": {"namespace": "ml", "pod": format!("train-{client}"), "container": "main"},
                    "priority": "high", "weight": 2.5, "pinned": true,
                })
            })
            .collect();
        let mut state = serde_json::to_value(State::default()).unwrap();
        state["clients"] = clients.into();
        Look::new(state, Readiness { ready: true, missing: vec![] }).unwrap()
    }

    fn order(model: &Model) -> Vec<u64> {
        model.rows().iter().map(|row| row.client).collect()
    }

    #[test]
    fn clients_are_sorted_as_chosen_and_the_cursor_stays_with_its_client() {
        let mut model = Model::default();
        model.look(Ok(look(&[(1, "waiting", 5), (2, "running", 1), (3, "waiting", 9)])));
        assert_eq!(order(&model), [1, 2, 3]);
        model.step(1);
        assert_eq!(model.place(&model.rows()), Some(0));
        model.sort = Sort::Activity;
        assert_eq!(order(&model), [2, 3, 1], "who runs, then who waits longest");
        assert_eq!(model.place(&model.rows()), Some(2));
        model.sort = Sort::Resident;
        assert_eq!(order(&model), [3, 1, 2]);
        model.reversed = true;
        assert_eq!(order(&model), [2, 1, 3]);
        model.step(isize::MIN);
        assert_eq!(model.place(&model.rows()), Some(0));
        model.step(isize::MAX);
        assert_eq!(model.place(&model.rows()), Some(2));
    }

    #[test]
    fn a_client_is_named_by_its_pod_where_the_agent_knows_it() {
        let look = look(&[(1, "running", 5)]);
        let row = &look.rows[0];
        assert_eq!(
            (row.owner.as_str(), row.orders.as_str()),
            ("ml/train-1/main", "pinned, high, weight 2.5")
        );
        assert_eq!(row.name, "py?thon");
    }

    #[test]
    fn an_agent_that_is_gone_is_said_and_the_last_picture_stays() {
        let mut model = Model::default();
        model.look(Ok(look(&[(1, "running", 5)])));
        model.look(Err("no agent answers".to_owned()));
        assert_eq!((order(&model), model.problem.as_deref()), (vec![1], Some("no agent answers")));
        model.look(Ok(look(&[])));
        assert_eq!(model.problem, None);
        model.step(1);
        assert_eq!(model.place(&model.rows()), None);
    }
}
