//! Who gets how much host memory for shadows. Once clients on a device need more than there is, each gets arenas for all
//! that it may have to swap, ahead of need and within the budget. The memory itself, and its descriptors, are somebody
//! else's: here arenas are numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ArenaId, ClientId, DeviceId};
use nvshare_common::protocol::ToShim;

use super::shortage::Shortage;
use super::{Command, Core};
use crate::arena::{HostError, Memory, Wanted};
use crate::ledger::{Client, Device, Ledger};
use crate::moment::Moment;
use crate::settings::Settings;
use crate::snapshot;

/// Arenas are at most this large: the first is there soon, and whole ones can be given back.
const LARGEST: Bytes = Bytes(1 << 30);
/// Arenas are multiples of the largest extent, so that packing wastes little.
const UNIT: Bytes = Bytes(64 << 20);
/// How many arenas of one client may be under way.
const AT_ONCE: usize = 2;
/// After a failure nothing is ordered for so long.
const PAUSE: Duration = Duration::from_secs(2);
/// Between two times that those who have too much are asked for it.
const TRIM_AGAIN: Duration = Duration::from_secs(5);

/// How many arenas a client may bring.
const MOST_BROUGHT: u32 = 4096;
/// How long it may take to bring them.
const BRINGING: Duration = Duration::from_secs(1);
/// How long a client that could not use an arena gets no other.
const REFUSED: Duration = Duration::from_secs(30);

/// What is to be done about host memory.
#[derive(Debug, Default)]
pub struct Arenas {
    /// To be made, in this order.
    pub wanted: Vec<Wanted>,
    /// To be sent: who is asked for memory back.
    pub commands: Vec<Command>,
}

/// Arenas on their way, and why there are no more.
#[derive(Debug, Default)]
pub(super) struct HostMemory {
    wanted: BTreeMap<(ClientId, ArenaId), Bytes>,
    /// Sent and not yet mapped by the client.
    unmapped: BTreeSet<(ClientId, ArenaId)>,
    /// Arenas of earlier sessions that are to come, and until when they are waited for.
    expected: BTreeMap<ClientId, (u32, Moment)>,
    /// The memory behind arenas of earlier sessions, by file, and who brought it.
    files: BTreeMap<(u64, u64), ClientId>,
    /// Clients that could not use an arena; they get no other before.
    refusals: BTreeMap<ClientId, Moment>,
    next: u64,
    not_before: Moment,
    trimmed: Moment,
    missing: Bytes,
    shortage: Shortage,
}

impl Core {
    /// Says what host memory is needed, and whom to ask for some back.
    pub fn plan_arenas(&mut self, now: Moment) -> Arenas {
        self.host.plan(&mut self.ledger, &self.settings, now)
    }

    /// An arena that was wanted was made, or not. If there is something to send, the arena goes with it; otherwise nobody
    /// wants it any more.
    pub fn arena_made(
        &mut self,
        made: Wanted,
        result: Result<(), HostError>,
        now: Moment,
    ) -> Option<Command> {
        self.host.made(&mut self.ledger, made, result, now)
    }

    /// The devices on which clients need more than there is.
    pub fn contended(&self) -> Vec<DeviceId> {
        contended(&self.ledger)
    }

    /// For people and machines outside.
    pub fn host(&self) -> snapshot::Host {
        snapshot::Host {
            budget: self.settings.host_memory,
            handed_out: self.ledger.clients().values().map(Client::arena_bytes).sum(),
            being_made: self.host.wanted.values().copied().sum(),
            missing: self.host.missing,
            problem: self.host.shortage.why(),
        }
    }
}

impl HostMemory {
    fn plan(&mut self, ledger: &mut Ledger, settings: &Settings, now: Moment) -> Arenas {
        if self.next == 0 {
            // No number of a previous agent comes again while this machine is up.
            self.next = now.0;
        }
        let contended = contended(ledger);
        let mut arenas = Arenas::default();
        let mut spent: Bytes = ledger.clients().values().map(Client::arena_bytes).sum();
        spent += self.wanted.values().copied().sum();
        let clients: Vec<ClientId> = ledger.clients().keys().copied().collect();
        self.missing = Bytes::ZERO;
        let mut refused = false;
        for id in &clients {
            let Some(client) = ledger.client(*id) else { continue };
            // It may bring arenas from an earlier session: what it lacks is known when they have come.
            if self.comes_with_arenas(*id, client, now) {
                continue;
            }
            let target = target(ledger, client, &contended);
            let numbers = (*id, ArenaId(0))..=(*id, ArenaId(u64::MAX));
            let under_way: Vec<Bytes> = self.wanted.range(numbers).map(|(_, bytes)| *bytes).collect();
            let have = client.arena_bytes() + under_way.iter().copied().sum();
            let lacks = target.saturating_sub(have);
            // The last of the budget is better than nothing.
            let left = Bytes(settings.host_memory.saturating_sub(spent).0 / UNIT.0 * UNIT.0);
            let piece = lacks.round_up(UNIT).unwrap_or(LARGEST).min(LARGEST).min(left);
            let fits = piece > Bytes::ZERO;
            let failed = self.not_before > now || self.refusals.get(id).is_some_and(|until| *until > now);
            let exhausted = lacks > Bytes::ZERO && (!fits || failed) && under_way.is_empty();
            if lacks > Bytes::ZERO && !fits {
                refused = true;
            }
            if lacks > Bytes::ZERO && (!fits || failed) {
                self.missing += lacks;
            } else if lacks > Bytes::ZERO && under_way.len() < AT_ONCE {
                self.next += 1;
                let wanted = Wanted { client: *id, arena: ArenaId(self.next), bytes: piece };
                self.wanted.insert((*id, wanted.arena), piece);
                arenas.wanted.push(wanted);
                spent += piece;
            }
            ledger.host_exhausted(*id, exhausted);
        }
        if refused {
            self.shortage.budget(settings.host_memory);
            arenas.commands = self.trim(ledger, &contended, now);
        } else if self.missing == Bytes::ZERO {
            self.shortage.over();
        }
        arenas
    }

    /// Asks those back who have more than they may need.
    fn trim(&mut self, ledger: &Ledger, contended: &[DeviceId], now: Moment) -> Vec<Command> {
        if now.since(self.trimmed) < TRIM_AGAIN {
            return Vec::new();
        }
        self.trimmed = now;
        let excess = |client: &Client| {
            let bytes = client.arena_bytes().saturating_sub(target(ledger, client, contended));
            let session = client.session().filter(|_| client.commandable() && bytes >= UNIT)?;
            Some(Command { client: client.id(), session, message: ToShim::Trim { bytes } })
        };
        ledger.clients().values().filter_map(excess).collect()
    }

    fn made(
        &mut self,
        ledger: &mut Ledger,
        made: Wanted,
        result: Result<(), HostError>,
        now: Moment,
    ) -> Option<Command> {
        let Wanted { client, arena, bytes } = made;
        self.wanted.remove(&(client, arena))?;
        if let Err(why) = result {
            if self.shortage.node(&why) {
                tracing::warn!(%why, "no host memory for shadows");
            }
            self.not_before = now + PAUSE;
            return None;
        }
        let session =
            ledger.client(client).filter(|client| client.commandable()).and_then(Client::session)?;
        ledger.arena(client, arena, bytes, false);
        self.unmapped.insert((client, arena));
        Some(Command { client, session, message: ToShim::Arena { arena, bytes } })
    }

    /// A session begins: what an earlier one had under way is void, and so many arenas come with it.
    pub(super) fn opened(&mut self, client: ClientId, arenas: u32, now: Moment) {
        self.left(client);
        if arenas > 0 {
            self.expected.insert(client, (arenas.min(MOST_BROUGHT), now + BRINGING));
        }
    }

    fn comes_with_arenas(&self, id: ClientId, client: &Client, now: Moment) -> bool {
        let expected = self.expected.get(&id);
        expected.is_some_and(|(arenas, until)| client.arenas().len() < *arenas as usize && now < *until)
    }

    /// The client brought an arena from an earlier session. It counts if it is one of those that it spoke of and nobody has
    /// brought it before, and for no more than the client could use.
    pub(super) fn brought(
        &mut self,
        ledger: &mut Ledger,
        client: ClientId,
        arena: ArenaId,
        measure: impl FnOnce() -> Result<Memory, String>,
    ) -> Result<(), String> {
        let holder = ledger.client(client).ok_or("of nobody")?;
        let expected = self.expected.get(&client).map_or(0, |(arenas, _)| *arenas as usize);
        if holder.arenas().len() >= expected || holder.arenas().contains_key(&arena) {
            return Err("one too many".to_owned());
        }
        let Memory { bytes, file } = measure()?;
        if self.files.insert(file, client).is_some() {
            return Err("brought already".to_owned());
        }
        let most = most(ledger, holder).saturating_sub(holder.arena_bytes());
        ledger.arena(client, arena, bytes.min(most), true);
        Ok(())
    }

    /// The client has mapped it. Says whether that is news.
    pub(super) fn ready(&mut self, client: ClientId, arena: ArenaId) -> bool {
        self.unmapped.remove(&(client, arena))
    }

    /// The client gave it back. One that it never used it could not use: others would fare no better now.
    pub(super) fn returned(&mut self, client: ClientId, arena: ArenaId, now: Moment) {
        if self.unmapped.remove(&(client, arena)) {
            self.refusals.insert(client, now + REFUSED);
        }
    }

    /// The client's session or process is over: what it has not mapped goes.
    pub(super) fn left(&mut self, client: ClientId) {
        self.unmapped.retain(|(owner, _)| *owner != client);
        self.wanted.retain(|(owner, _), _| *owner != client);
        self.expected.remove(&client);
        self.files.retain(|_, owner| *owner != client);
        self.refusals.remove(&client);
    }
}

/// The devices on which clients need more than there is.
fn contended(ledger: &Ledger) -> Vec<DeviceId> {
    // Who is swapped out by order takes no turns.
    let turns = |id| ledger.holdings(id).filter(|(client, _)| !client.held_out());
    let needs = |id: DeviceId| -> u64 { turns(id).map(|(_, holding)| holding.needed().0).sum() };
    let devices = ledger.devices().iter();
    devices
        .filter(|(id, device)| needs(**id) as i64 + device.room().0 as i64 > device.promised())
        .map(|(id, _)| *id)
        .collect()
}

/// How much host memory the client may come to need: no more than the devices have, whatever it says that it needs.
fn target(ledger: &Ledger, client: &Client, contended: &[DeviceId]) -> Bytes {
    if !client.commandable() || client.bypass() {
        return Bytes::ZERO;
    }
    let movable = client.devices().iter().filter(|(id, _)| contended.contains(id) || client.held_out());
    let most = |id: &DeviceId| ledger.device(*id).map(Device::capacity).unwrap_or_default();
    let moves =
        movable.map(|(id, holding)| holding.needed().min(most(id)).saturating_sub(holding.immovable()).0);
    let bytes: u64 = moves.sum();
    if bytes == 0 {
        return Bytes::ZERO;
    }
    // Shadows do not fill an arena to its last block.
    Bytes(bytes + bytes / 16).round_up(UNIT).unwrap_or(Bytes(bytes))
}

/// The most host memory that the client could use with all of its memory swapped out.
fn most(ledger: &Ledger, client: &Client) -> Bytes {
    let needed = client.devices().iter().map(|(id, holding)| {
        let capacity = ledger.device(*id).map(Device::capacity).filter(|bytes| *bytes > Bytes::ZERO);
        // Nothing is known of a device before it is read.
        holding.needed().min(capacity.unwrap_or(holding.needed())).0
    });
    let bytes: u64 = needed.sum();
    Bytes(bytes + bytes / 16).round_up(LARGEST).unwrap_or(Bytes(bytes))
}

#[cfg(test)]
mod tests {
    use nvshare_common::protocol::{Held, Hello};

    use super::*;
    use crate::ledger::SessionId;
    use crate::process::Process;
    use crate::reading::{Reading, Report};

    const CARD: DeviceId = DeviceId([7; 16]);
    const NOW: Moment = Moment(1_000_000_000);

    /// A client that needs much more than the card has, and another one, so that it is contended.
    fn node(needed: Bytes, arenas: u32) -> (Core, ClientId) {
        let settings = Settings { host_memory: Bytes(64 << 30), ..Settings::default() };
        let mut core = Core::new(settings);
        let reading = Reading {
            device: CARD,
            index: 0,
            name: String::new(),
            total: Bytes(4 << 30),
            link: None,
            used: Bytes::ZERO,
            per_process: BTreeMap::new(),
        };
        core.devices(&Report { began: NOW, devices: vec![reading], complete: true, problem: None }, NOW);
        let mut client = ClientId(0);
        for (pid, needed, arenas) in [(1, Bytes(4 << 30), 0), (2, needed, arenas)] {
            let held = Held { device: CARD, granted: Bytes::ZERO, resident: Bytes::ZERO, total: needed };
            let hello =
                Hello { release: String::new(), running: false, devices: vec![held], arenas, bypass: false };
            client = core.hello(Process { pid, start: 1 }, SessionId(u64::from(pid)), &hello, NOW);
        }
        (core, client)
    }

    /// How many arenas are on their way to the client.
    fn wanted(core: &Core, client: ClientId) -> usize {
        core.host.wanted.keys().filter(|(owner, _)| *owner == client).count()
    }

    #[test]
    fn an_arena_from_an_earlier_session_counts_once_and_only_if_it_was_spoken_of() {
        let (mut core, client) = node(Bytes(4 << 30), 2);
        let file = |number| Some(Memory { bytes: Bytes(4096), file: (1, number) });
        let mut bring = |id, file: Option<Memory>| {
            let measure = || file.ok_or_else(|| "no descriptor".to_owned());
            core.host.brought(&mut core.ledger, client, ArenaId(id), measure)
        };
        bring(1, file(1)).unwrap();
        assert!(bring(2, file(1)).unwrap_err().contains("already"));
        assert!(bring(1, file(2)).unwrap_err().contains("many"));
        assert!(bring(2, None).is_err());
        bring(2, file(2)).unwrap();
        assert!(bring(3, file(3)).unwrap_err().contains("many"));
        assert_eq!(core.ledger.client(client).unwrap().arena_bytes(), Bytes(8192));
    }

    #[test]
    fn nothing_is_ordered_for_whoever_comes_with_arenas_before_they_have_come() {
        let (mut core, client) = node(Bytes(4 << 30), 1);
        core.plan_arenas(NOW);
        assert_eq!(wanted(&core, client), 0);
        core.plan_arenas(NOW + BRINGING);
        assert!(wanted(&core, client) > 0);
    }

    #[test]
    fn no_client_needs_more_host_memory_than_the_devices_have() {
        let (core, client) = node(Bytes(1 << 48), 0);
        let target = target(&core.ledger, core.ledger.client(client).unwrap(), &core.contended());
        assert!(target > Bytes(4 << 30) && target < Bytes(5 << 30), "{target}");
    }

    #[test]
    fn a_client_that_cannot_use_an_arena_gets_no_other_for_a_while() {
        let (mut core, client) = node(Bytes(4 << 30), 0);
        let plan = core.plan_arenas(NOW).wanted;
        let first = *plan.iter().find(|wanted| wanted.client == client).unwrap();
        assert!(core.arena_made(first, Ok(()), NOW).is_some());
        core.ledger.arena_returned(client, first.arena);
        core.host.returned(client, first.arena, NOW);
        let before = wanted(&core, client);
        core.plan_arenas(NOW);
        assert!(wanted(&core, client) <= before);
        assert!(core.ledger.client(client).unwrap().host_exhausted() || before > 0);
        core.plan_arenas(NOW + REFUSED);
        assert!(wanted(&core, client) > before);
    }

    #[test]
    fn an_arena_that_was_made_for_a_session_that_is_over_is_sent_to_nobody() {
        let (mut core, client) = node(Bytes(4 << 30), 0);
        let plan = core.plan_arenas(NOW).wanted;
        let first = *plan.iter().find(|wanted| wanted.client == client).unwrap();
        core.disconnected(client, SessionId(2), NOW);
        assert_eq!(core.arena_made(first, Ok(()), NOW), None);
        assert_eq!(core.ledger.client(client).unwrap().arena_bytes(), Bytes::ZERO);
    }
}
