//! The memory of arenas, and its descriptors: made as the core wants them, sealed once their client has mapped them. Who gets
//! how much is the core's plan.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use nvshare_agent_core::arena::{Memory, Wanted};
use nvshare_agent_core::conductor::{Command, Core, Fate};
use nvshare_agent_core::moment::Moment;
use nvshare_common::bytes::Bytes;
use nvshare_common::ids::{ArenaId, ClientId};
use rustix::fs::{SealFlags, fcntl_get_seals, fstat};

use crate::hostmem::{self, Made, Maker};

/// Who makes arenas, and those that were sent and not yet mapped by the client: sealed once they are.
pub(super) struct HostMemory {
    maker: Maker,
    unmapped: BTreeMap<(ClientId, ArenaId), Arc<OwnedFd>>,
}

impl HostMemory {
    pub(super) fn start(tell: impl FnMut(Made) + Send + 'static) -> std::io::Result<HostMemory> {
        Ok(HostMemory { maker: Maker::start(tell)?, unmapped: BTreeMap::new() })
    }

    /// Has an arena made.
    pub(super) fn make(&self, wanted: Wanted) {
        self.maker.order(wanted);
    }

    /// One was made, or not: what there is to send.
    pub(super) fn made(
        &mut self,
        core: &mut Core,
        made: Made,
        now: Moment,
    ) -> Option<(Command, Arc<OwnedFd>)> {
        let (descriptor, result) = match made.arena {
            Ok(descriptor) => (Some(Arc::new(descriptor)), Ok(())),
            Err(why) => (None, Err(why)),
        };
        let command = core.arena_made(made.wanted, result, now)?;
        let descriptor = descriptor?;
        self.unmapped.insert((made.wanted.client, made.wanted.arena), Arc::clone(&descriptor));
        Some((command, descriptor))
    }

    /// What the client did with it.
    pub(super) fn follow(&mut self, client: ClientId, arena: ArenaId, fate: Fate) {
        let descriptor = self.unmapped.remove(&(client, arena));
        if fate == Fate::Mapped
            && let Some(descriptor) = descriptor
            && let Err(error) = hostmem::close_for_good(&*descriptor)
        {
            tracing::debug!(client = client.0, arena = arena.0, %error, "an arena could not be sealed for good");
        }
    }

    /// The client's session or process is over: what it has not mapped goes.
    pub(super) fn left(&mut self, client: ClientId) {
        self.unmapped.retain(|(owner, _), _| *owner != client);
    }
}

/// The memory behind an arena that a client brought from an earlier session.
pub(super) fn measure(descriptor: impl AsFd) -> Result<Memory, String> {
    let sealed = SealFlags::SHRINK | SealFlags::GROW;
    let seals = fcntl_get_seals(&descriptor).map_err(|error| format!("not a memfd: {error}"))?;
    if !seals.contains(sealed) {
        return Err("not sealed against shrinking and growing".to_owned());
    }
    let status = fstat(&descriptor).map_err(|error| error.to_string())?;
    // What is allocated counts, not what it claims: holes cost nobody anything.
    let bytes = Bytes(u64::try_from(status.st_blocks).unwrap_or(0).saturating_mul(512).min(1 << 44));
    Ok(Memory { bytes, file: (status.st_dev, status.st_ino) })
}

#[cfg(test)]
mod tests {
    use nvshare_agent_core::arena::HostError;
    use nvshare_agent_core::conductor::shortage::Shortage;
    use nvshare_agent_core::ledger::SessionId;
    use nvshare_agent_core::process::Process;
    use nvshare_agent_core::settings::Settings;
    use nvshare_common::ids::DeviceId;
    use nvshare_common::protocol::{Held, Hello, ToAgent};
    use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, fcntl_add_seals, ftruncate, memfd_create};

    use super::*;
    use crate::health::{Health, Part};
    use crate::log::tests::written;

    const CARD: DeviceId = DeviceId([7; 16]);
    const NOW: Moment = Moment(1_000_000_000);

    fn arena(bytes: u64) -> OwnedFd {
        let file = memfd_create(c"test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        ftruncate(&file, bytes).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, bytes).unwrap();
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW).unwrap();
        file
    }

    #[test]
    fn an_arena_from_an_earlier_session_is_known_by_the_file_behind_its_descriptor() {
        let mut core = Core::new(Settings::default());
        let held = Held { device: CARD, granted: Bytes::ZERO, resident: Bytes::ZERO, total: Bytes(4 << 30) };
        let hello =
            Hello { release: String::new(), running: false, devices: vec![held], arenas: 2, bypass: false };
        let session = SessionId(1);
        let client = core.hello(Process { pid: 1, start: 1 }, session, &hello, NOW);
        let (one, other) = (arena(4096), arena(8192));
        let mut bring = |id, file: &OwnedFd| {
            let message = ToAgent::ArenaHeld { arena: ArenaId(id) };
            core.hear_with(client, session, message, || measure(file), NOW);
            core.ledger.client(client).unwrap().arena_bytes()
        };
        assert_eq!(bring(1, &one), Bytes(4096));
        assert_eq!(bring(2, &one.try_clone().unwrap()), Bytes(4096), "another descriptor of the same");
        let unsealed = memfd_create(c"test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        assert_eq!(bring(2, &unsealed), Bytes(4096));
        assert!(measure(&unsealed).unwrap_err().contains("not sealed"));
        assert_eq!(bring(2, &other), Bytes(4096 + 8192));
    }

    fn no_room(free: Bytes) -> HostError {
        HostError::NoRoom { bytes: Bytes::GIB, free, margin: Bytes::GIB, whose: "the node's" }
    }

    #[test]
    fn a_lack_of_another_sum_is_not_another_line_in_the_log_and_another_cause_is() {
        let log = written(|| {
            let (mut shortage, health) = (Shortage::default(), Health::new());
            let tell = |shortage: &Shortage| health.missing(Part::HostMemory, &shortage.why().unwrap());
            for free in 1..5 {
                assert_eq!(shortage.node(&no_room(Bytes(free << 20))), free == 1);
                tell(&shortage);
            }
            shortage.budget(Bytes(64 << 30));
            tell(&shortage);
            shortage.over();
            assert_eq!(shortage.why(), None);
        });
        assert_eq!(log.matches("running without a part").count(), 2, "{log}");
        assert!(
            log.contains("1 MiB of host memory are available") && log.contains("(64 GiB) is used up"),
            "{log}"
        );
    }
}
