//! Host memory for shadows: the core's plan is carried out, one arena after another, and shims give back what they do not use.

use nvshare_agent_core::arena::Memory;
use nvshare_agent_core::conductor::Command;
use nvshare_common::bytes::Bytes;
use nvshare_common::ids::ArenaId;
use nvshare_common::protocol::ToAgent;

use crate::{GIB, Shim, World};

impl World {
    /// Asks the core what is needed.
    pub(crate) fn plan_arenas(&mut self) -> Vec<Command> {
        let now = self.moment();
        // Only for the plan: of what is pinned the core would keep something back on the cards.
        let before = std::mem::replace(&mut self.core.settings.host_memory, Bytes(self.host_memory));
        let arenas = self.core.plan_arenas(now);
        self.core.settings.host_memory = before;
        for wanted in arenas.wanted {
            if self.ordered.is_empty() {
                self.made_at = self.now + self.takes(wanted.bytes.0);
            }
            self.ordered.push_back(wanted);
        }
        arenas.commands
    }

    /// How long that much takes to be made.
    fn takes(&self, bytes: u64) -> u64 {
        bytes * self.making / GIB * 1000
    }

    /// Says whether any were made.
    pub(crate) fn make_arenas(&mut self) -> bool {
        let mut any = false;
        while self.made_at <= self.now
            && let Some(wanted) = self.ordered.pop_front()
        {
            any = true;
            if let Some(next) = self.ordered.front() {
                self.made_at = self.now + self.takes(next.bytes.0);
            }
            let now = self.moment();
            let command = self.core.arena_made(wanted, Ok(()), now);
            self.deliver(command.into_iter().collect());
        }
        any
    }

    /// What is behind the descriptor that comes with a message.
    pub(crate) fn kept(&self, index: usize, message: &ToAgent) -> Result<Memory, String> {
        let ToAgent::ArenaHeld { arena } = message else { return Err("no descriptor".to_owned()) };
        let bytes = self.shims[index].arenas.get(arena).ok_or("no such arena")?;
        Ok(Memory { bytes: Bytes(*bytes), file: (1, arena.0) })
    }

    /// A client maps an arena.
    pub(crate) fn take_arena(&mut self, index: usize, arena: ArenaId, bytes: u64) {
        self.shims[index].arenas.insert(arena, bytes);
        self.say(index, ToAgent::ArenaReady { arena });
    }

    /// A client gives back whole arenas that it can do without, up to so much.
    pub(crate) fn trim(&mut self, index: usize, bytes: u64) {
        let mut left = bytes;
        let arenas: Vec<(ArenaId, u64)> =
            self.shims[index].arenas.iter().map(|(arena, bytes)| (*arena, *bytes)).collect();
        for (arena, bytes) in arenas {
            if bytes <= left && bytes <= self.shims[index].place() {
                left -= bytes;
                self.shims[index].arenas.remove(&arena);
                self.say(index, ToAgent::ArenaReturned { arena });
            }
        }
    }
}

impl Shim {
    /// How much more its arenas can take.
    pub(crate) fn place(&self) -> u64 {
        self.arenas.values().sum::<u64>().saturating_sub(self.shadow.values().sum())
    }
}
