//! Crowds by chance: whatever happens to them, they stay within the cards, and everybody runs in time.

use std::time::Duration;

use nvshare_agent_core::order::{Priority, Weight, What};
use nvshare_agent_world::{GIB, MIB, World, card};
use proptest::prelude::*;

/// What may happen to a crowd.
#[derive(Clone, Debug)]
enum Event {
    Start { gib: u64, rhythm: (u64, u64), device: u8 },
    Grow { who: usize, mib: u64 },
    Shrink { who: usize, mib: u64 },
    Idle { who: usize },
    Work { who: usize },
    Kill { who: usize },
    Reconnect { who: usize },
    Room { who: usize, mib: u64 },
    Order { who: usize, what: What },
    Pass { ms: u64 },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (1..14_u64, 1..300_u64, 0..600_u64, 0..2_u8)
            .prop_map(|(gib, busy, pause, device)| Event::Start { gib, rhythm: (busy, pause), device }),
        3 => (0..8_usize, 1..3000_u64).prop_map(|(who, mib)| Event::Grow { who, mib }),
        2 => (0..8_usize, 1..3000_u64).prop_map(|(who, mib)| Event::Shrink { who, mib }),
        2 => (0..8_usize).prop_map(|who| Event::Idle { who }),
        3 => (0..8_usize).prop_map(|who| Event::Work { who }),
        1 => (0..8_usize).prop_map(|who| Event::Kill { who }),
        1 => (0..8_usize).prop_map(|who| Event::Reconnect { who }),
        1 => (0..8_usize, 1..2000_u64).prop_map(|(who, mib)| Event::Room { who, mib }),
        3 => (0..8_usize, what()).prop_map(|(who, what)| Event::Order { who, what }),
        6 => (1..3000_u64).prop_map(|ms| Event::Pass { ms }),
    ]
}

fn what() -> impl Strategy<Value = What> {
    let priority = prop_oneof![Just(Priority::Low), Just(Priority::Normal), Just(Priority::High)];
    prop_oneof![
        1 => Just(What::SwapOut),
        2 => Just(What::SwapIn),
        2 => any::<bool>().prop_map(What::Pin),
        2 => priority.prop_map(What::Priority),
        2 => (0.1..10.0).prop_map(|weight: f64| What::Weight(weight.try_into().unwrap())),
        1 => proptest::option::of((1..20_u64).prop_map(|gib| nvshare_common::bytes::Bytes(gib * GIB))).prop_map(What::Limit),
    ]
}

fn happen(world: &mut World, event: &Event, number: u64) {
    let living: Vec<usize> = (0..world.shims.len()).filter(|index| world.shims[*index].alive).collect();
    let one = |who: usize| living.get(who % living.len().max(1)).copied();
    match *event {
        Event::Start { gib, rhythm, device } if living.len() < 8 => {
            let client = world.start();
            world.allocate(client, device, gib * GIB);
            world.shims[client].rhythm = rhythm;
            world.shims[client].works = true;
        }
        Event::Grow { who, mib } => {
            if let Some(client) = one(who) {
                let device = (who % 2) as u8;
                let now = world.shims[client].total.get(&card(device)).copied().unwrap_or_default();
                if now + mib * MIB < 15 * GIB {
                    world.allocate(client, device, mib * MIB);
                }
            }
        }
        Event::Shrink { who, mib } => {
            if let Some(client) = one(who) {
                let device = (who % 2) as u8;
                if world.shims[client].total.contains_key(&card(device)) {
                    world.free(client, device, mib * MIB);
                }
            }
        }
        Event::Idle { who } => {
            if let Some(client) = one(who) {
                world.shims[client].works = false;
            }
        }
        Event::Work { who } => {
            if let Some(client) = one(who) {
                world.shims[client].works = true;
            }
        }
        Event::Kill { who } => {
            if let Some(client) = one(who) {
                world.kill(client);
            }
        }
        Event::Reconnect { who } => {
            if let Some(client) = one(who) {
                world.disconnect(client);
                world.run(5);
                world.connect(client);
            }
        }
        Event::Room { who, mib } => {
            if let Some(client) = one(who) {
                world.want_room(client, number, mib * MIB);
            }
        }
        Event::Order { who, what } => {
            if let Some(client) = one(who) {
                // Refused where it cannot be.
                let _ = world.order(client, what);
            }
        }
        Event::Pass { ms } => world.run(ms),
        Event::Start { .. } => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// A1, A2 and that pinned clients lose nothing are checked by the world at every step; A3, that requests are answered,
    /// and that who is swapped out by order holds nothing, here.
    #[test]
    fn any_crowd_stays_within_the_cards_and_everybody_runs_in_time(events in proptest::collection::vec(event(), 5..40)) {
        let mut world = World::new(&[16 * GIB, 16 * GIB]);
        world.core.settings.lease_ceiling = Duration::from_secs(5);
        for (number, event) in events.iter().enumerate() {
            happen(&mut world, event, number as u64);
        }
        for shim in &mut world.shims {
            shim.works = shim.alive;
        }
        let clients: Vec<usize> = (0..world.shims.len()).filter(|index| world.shims[*index].alive).collect();
        for client in clients {
            world.order(client, What::Weight(Weight::default())).unwrap();
        }
        let before: Vec<u64> = world.shims.iter().map(|shim| shim.ran).collect();
        let living = world.shims.iter().filter(|shim| shim.alive).count() as u64;
        // Each of the others may have one lease and one switch first; twice, because a turn can be taken in the middle.
        // Who has a low priority has aged after four ceilings, one after another.
        let leases = 2 * living * (5000 + 2500);
        let orders = |world: &World, id| world.core.ledger.client(id).map(nvshare_agent_core::ledger::Client::orders).unwrap();
        let living = world.shims.iter().filter(|shim| shim.alive);
        let priorities: std::collections::BTreeSet<_> = living.map(|shim| orders(&world, shim.id).priority).collect();
        let aged = if priorities.len() > 1 { leases / (2 * 7500) * (4 * 5000 + 7500) } else { 0 };
        // One that ran with little weight is behind by two ceilings of its time at most.
        world.run(1000 + leases + aged + 2 * 5000 * 10);
        for (index, shim) in world.shims.iter().enumerate() {
            if shim.alive && orders(&world, shim.id).held_out.is_some() {
                let held: u64 = shim.resident.values().sum();
                prop_assert_eq!(held, 0, "client {} is out by order; {}", index, world.describe());
                continue;
            }
            if shim.alive && !world.core.hindered.contains_key(&shim.id) {
                prop_assert!(shim.ran > before[index], "client {index} waits; {}", world.describe());
            }
            for (room, answer) in &shim.rooms {
                prop_assert!(!shim.alive || answer.is_some() || shim.session.is_none(), "room {room} of client {index} has no answer");
            }
        }
    }
}
