//! Nodes that are full, for benches.

use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::observation::What;
use nvshare_common::bytes::{Bytes, DevicePtr, DeviceRange};

use crate::{GIB, MIB, World};

impl World {
    /// A thousand clients on two cards that together want a hundred times what there is, a third of them at work.
    pub fn crowd() -> World {
        let mut world = World::new(&[16 * GIB, 16 * GIB]);
        for number in 0..1000_u64 {
            let client = world.start();
            world.allocate(client, (number % 2) as u8, (1 + number % 7) * GIB);
            world.shims[client].works = number % 3 == 0;
        }
        world.run(3000);
        world
    }

    /// A thousand clients on eight cards, of which all but a few have to wait, with a thousand pieces of memory each.
    pub fn throng() -> World {
        let mut world = World::new(&[16 * GIB; 8]);
        for number in 0..1000_u64 {
            let client = world.start();
            world.allocate(client, (number % 8) as u8, (1 + number % 7) * GIB);
            world.shims[client].works = number % 3 == 0;
            let id = world.shims[client].id;
            world.core.ledger.named(id, String::new(), format!("/kubepods/pod{number}"));
            for piece in 0..1000_u64 {
                // With a gap behind each, or they would be one.
                let range = DeviceRange { start: DevicePtr(piece << 28), bytes: Bytes(2 * MIB) };
                world.core.ledger.warm(id, &What::Mapped(range, piece), Moment(piece * 7919 % 1000));
            }
        }
        world.run(3000);
        world
    }
}
