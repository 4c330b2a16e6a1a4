//! Clients that fill their memory bit by bit: each step would be a request, and where memory is short somebody else's swap-out.
//! Who has asked again and again is expected to go on, and to double what it has come to.

use std::time::Duration;

use nvshare_common::bytes::Bytes;

use crate::moment::Moment;

/// Who does not ask again for so long has done growing.
const PAUSE: Duration = Duration::from_secs(1);
/// From so many steps on it is taken for growth.
const STEPS: u32 = 3;
/// No more than this is expected: it may be the last step.
const MOST: Bytes = Bytes(2 << 30);

/// How a client comes to need more on a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Growth {
    /// When it last asked for more.
    at: Moment,
    /// How often, without a pause.
    steps: u32,
    /// What it needed before the first of them.
    from: Bytes,
}

impl Growth {
    /// It needs `after`, and needed `before`.
    pub(super) fn asks(&mut self, before: Bytes, after: Bytes, now: Moment) {
        if after <= before {
            return;
        }
        if now.since(self.at) > PAUSE || self.steps == 0 || before < self.from {
            (self.steps, self.from) = (0, before);
        }
        (self.steps, self.at) = (self.steps.saturating_add(1), now);
    }

    /// How much more it will probably ask for soon: as much again as it has grown by.
    pub(super) fn ahead(&self, needed: Bytes, now: Moment) -> Bytes {
        if self.steps < STEPS || now.since(self.at) > PAUSE {
            return Bytes::ZERO;
        }
        needed.saturating_sub(self.from).min(MOST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(ms: u64) -> Moment {
        Moment(ms * 1_000_000)
    }

    #[test]
    fn who_asks_again_and_again_is_expected_to_double_and_who_pauses_is_not() {
        let mut growth = Growth::default();
        for (step, expected) in [(1, 0), (2, 0), (3, 3), (4, 4)] {
            growth.asks(Bytes(10 + step - 1), Bytes(10 + step), at(5000 + step));
            assert_eq!(growth.ahead(Bytes(10 + step), at(5000 + step)), Bytes(expected), "step {step}");
        }
        assert_eq!(growth.ahead(Bytes(14), at(6500)), Bytes::ZERO);
        growth.asks(Bytes(14), Bytes(15), at(7000));
        assert_eq!(growth.ahead(Bytes(15), at(7000)), Bytes::ZERO, "after a pause it begins anew");
    }

    #[test]
    fn less_is_no_growth_and_no_step_is_expected_to_take_a_card() {
        let mut growth = Growth::default();
        growth.asks(Bytes(5), Bytes(5), at(9000));
        growth.asks(Bytes(5), Bytes(3), at(9000));
        assert_eq!(growth, Growth::default());
        for step in 1..9 {
            growth.asks(Bytes((step - 1) << 30), Bytes(step << 30), at(9000 + step));
        }
        assert_eq!(growth.ahead(Bytes(8 << 30), at(9010)), MOST);
    }
}
