//! Managed memory that thrashes: the driver brings it to a card on demand, and takes it away again for others'. It fits beside
//! everything, for it is granted by nobody; run side by side, two that thrash wait for the link all the time.

use std::collections::VecDeque;
use std::time::Duration;

use nvshare_common::bytes::Bytes;
use nvshare_common::ids::DeviceId;

use super::Client;
use crate::moment::Moment;
use crate::observation::Paged;
use crate::settings::Settings;

/// What was moved within this time is weighed.
const WINDOW: Duration = Duration::from_secs(2);
/// Much, of a card: this part of it.
const MUCH: u64 = 64;
/// A card on which less than this part is free is full.
const FREE: u64 = 16;
/// Moves within this time are remembered together.
const TOGETHER: Duration = Duration::from_millis(100);

/// What was lately moved of one client's managed memory, to one card and from it.
#[derive(Clone, Debug, Default)]
pub(super) struct Paging {
    moves: VecDeque<(Moment, Paged)>,
    thrashes: bool,
    /// When much was last moved.
    at: Moment,
}

impl Paging {
    /// This was moved; the card has so much in all, of which so much is in use.
    fn moved(&mut self, more: Paged, total: Bytes, used: Bytes, settings: &Settings, now: Moment) {
        while self.moves.front().is_some_and(|(at, _)| now.since(*at) > WINDOW) {
            self.moves.pop_front();
        }
        match self.moves.back_mut() {
            Some((at, sum)) if now.since(*at) < TOGETHER => sum.add(more),
            _ => self.moves.push_back((now, more)),
        }
        let mut sum = Paged::default();
        self.moves.iter().for_each(|(_, moved)| sum.add(*moved));
        let much = Bytes(total.0 / MUCH);
        let (in_much, out_much) = (sum.to_device >= much, sum.to_host >= much);
        let full = total.saturating_sub(used) < Bytes(total.0 / FREE);
        self.thrashes = self.thrashes(settings, now) || (in_much && out_much && full);
        if self.thrashes && (in_much || out_much) {
            self.at = now;
        }
    }

    /// It did, and its memory has moved since then at each change of turns.
    fn thrashes(&self, settings: &Settings, now: Moment) -> bool {
        self.thrashes && now.since(self.at) < settings.lease_ceiling * 2 + WINDOW
    }
}

impl Client {
    /// The driver moved some of its managed memory, to or from a card of the node's.
    pub(super) fn paged(
        &mut self,
        device: DeviceId,
        (total, used): (Bytes, Bytes),
        more: Paged,
        settings: &Settings,
        now: Moment,
    ) {
        self.paging.entry(device).or_default().moved(more, total, used, settings, now);
    }

    /// The cards on which its managed memory thrashes, or does when it runs beside another such one.
    pub fn thrashes(&self, settings: &Settings, now: Moment) -> impl Iterator<Item = DeviceId> {
        let of = self.paging.iter().filter(move |(_, paging)| paging.thrashes(settings, now));
        of.map(|(device, _)| *device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: Bytes = Bytes(64 << 30);

    fn moved(to_device: u64, to_host: u64) -> Paged {
        Paged { to_device: Bytes(to_device << 30), to_host: Bytes(to_host << 30), ..Paged::default() }
    }

    /// Whether it thrashes after these, half a second apart, and how long it does then.
    fn after(moves: &[Paged], used: Bytes) -> (bool, u64) {
        let (settings, mut paging) = (Settings::default(), Paging::default());
        let mut now = Moment(1 << 40);
        for one in moves {
            now = now + WINDOW / 4;
            paging.moved(*one, CARD, used, &settings, now);
        }
        let holds = (0..1000).find(|s| !paging.thrashes(&settings, now + Duration::from_secs(*s)));
        (paging.thrashes(&settings, now), holds.unwrap_or(1000))
    }

    #[test]
    fn what_comes_and_goes_on_a_full_card_thrashes() {
        let full = Bytes(62 << 30);
        let both = [moved(1, 1); 3];
        assert_eq!(after(&both, full), (true, 122), "two lease ceilings, and the time that is weighed");
        assert!(!after(&both, Bytes(50 << 30)).0, "there is room: the host reads it, and writes it again");
        assert!(!after(&[moved(40, 0); 8], full).0, "it comes, and stays");
        assert!(!after(&[moved(0, 9); 8], full).0, "it goes, and stays away");
        assert!(
            !after(&[moved(1, 0), moved(0, 0), moved(0, 0), moved(0, 0), moved(0, 0), moved(0, 1)], full).0
        );
    }

    #[test]
    fn what_thrashed_goes_on_doing_so_with_each_move_one_way() {
        let (settings, mut paging) = (Settings::default(), Paging::default());
        let (full, minute) = (Bytes(63 << 30), Duration::from_mins(1));
        let mut now = Moment(1 << 40);
        paging.moved(moved(2, 2), CARD, full, &settings, now);
        for turn in 0..6 {
            now = now + minute;
            assert!(paging.thrashes(&settings, now));
            paging.moved(if turn % 2 == 0 { moved(9, 0) } else { moved(0, 9) }, CARD, full, &settings, now);
        }
        now = now + 3 * minute;
        assert!(!paging.thrashes(&settings, now));
        paging.moved(moved(9, 0), CARD, full, &settings, now);
        assert!(!paging.thrashes(&settings, now), "it begins anew");
    }
}
