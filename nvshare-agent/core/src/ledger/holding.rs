//! What one client holds on one device: its grant, what it needs, and what it has, by its counters and by NVML.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use nvshare_common::bytes::Bytes;
use nvshare_common::counters::Holdings;
use nvshare_common::ids::Ticket;

use super::growth::Growth;
use super::readers::readers;
use crate::moment::Moment;

/// No device is larger: what a client says is cut to this, so that sums cannot overflow.
pub(super) const MOST: Bytes = Bytes(1 << 48);
/// How many samples of what a client holds are kept, to know what it held when NVML was read.
const SAMPLES: usize = 16;
/// The most that driver and counters are believed to differ by while memory moves: two of the largest extents.
pub(super) const STEP: u64 = 128 << 20;
/// How long readings must agree that a client says it holds more than can be. A driver call takes long when memory is short.
const OVERCLAIM: Duration = Duration::from_secs(3);

/// A `SwapOut` that is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Its number.
    pub ticket: Ticket,
    /// When it was sent.
    pub at: Moment,
    /// What was asked for.
    pub asked: Bytes,
    /// What is still to be released.
    pub left: Bytes,
}

impl Outgoing {
    /// It ended without all of it, and brought the greater part: who shared or freed memory meanwhile had no more to give.
    pub(super) fn fell_short(&self) -> bool {
        self.left > Bytes::ZERO && self.left.0 <= self.asked.0 / 2
    }
}

/// A `Reclaim` that is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reclaiming {
    /// Its number.
    pub ticket: Ticket,
    /// When it was sent.
    pub at: Moment,
    /// What it may bring.
    pub expected: Bytes,
}

/// What a client holds on one device.
#[derive(Clone, Debug, Default)]
pub struct Holding {
    pub(super) granted: Bytes,
    pub(super) needed: Bytes,
    pub(super) unswappable: BTreeMap<String, Bytes>,
    pub(super) page: Holdings,
    pub(super) complete: bool,
    pub(super) outgoing: Option<Outgoing>,
    pub(super) reclaiming: Option<Reclaiming>,
    pub(super) reclaimed_at: Moment,
    pub(super) granting_since: Option<Moment>,
    /// All it has, by its last counters, resident or not.
    pub(super) page_total: Option<Bytes>,
    /// How it comes to need more.
    pub(super) growth: Growth,
    /// What it held, by its counters, at moments.
    pub(super) samples: VecDeque<(Moment, Bytes)>,
    pub(super) measured: Option<Bytes>,
    /// What it is taken to hold, where there are no counters.
    pub(super) assumed: Option<Bytes>,
    /// The most it can hold beyond its grant, by NVML.
    pub(super) plausible: Plausible,
    /// Its grant is what a process said of itself: what has to be seen before it is believed.
    pub(super) proof: Proof,
    /// Its grant is taken for what it said, and more than it uses and needs: it is asked for the rest.
    pub(super) doubt: Option<Doubt>,
    /// Since which reading it has held more, by its counters, than can be.
    pub(super) overclaims_since: Option<Moment>,
    /// It is booked at what NVML shows, whatever it was granted: it said what cannot be, or does not give back.
    pub(super) disbelieved: bool,
}

impl Holding {
    readers! {
        /// What it may have resident.
        granted: Bytes,
        /// What must be resident for it to run.
        needed: Bytes,
        /// What cannot be moved, by reason, as it reported.
        unswappable: &BTreeMap<String, Bytes>,
        /// The last look at its counters.
        page: &Holdings,
        /// Everything is resident, as far as messages tell.
        complete: bool,
        /// The swap out under way.
        outgoing: Option<Outgoing>,
        /// The reclaim under way.
        reclaiming: Option<Reclaiming>,
        /// When the last reclaim ended.
        reclaimed_at: Moment,
        /// Since when it has been granted memory without having become resident.
        granting_since: Option<Moment>,
        /// What NVML says of its process.
        measured: Option<Bytes>,
    }
}

/// What must be seen before the grant that a `Hello` claims is believed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Proof {
    /// Nothing: the agent knows what it granted, or has looked.
    #[default]
    Done,
    /// Any reading: nobody here ever granted it anything, so it has what NVML shows.
    First,
    /// A reading after granting began: a previous agent may have granted what it is about to take. What it neither holds
    /// nor needs then is in doubt, and asked back.
    Settled,
}

/// A grant beyond what a client has and needs, for which there is its word only. It may be true, and then the client may
/// use it at any moment: it stays booked (A1) until the client gave it back (A2). Who does neither is disbelieved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Doubt {
    /// Since when it should have answered, in this session or an earlier one.
    pub(super) since: Option<Moment>,
    /// It was asked, in this session.
    pub(super) asked: bool,
    /// When it answered.
    pub(super) answered: Option<Moment>,
}

/// The most that a process can hold on a device for which nobody granted it anything, by NVML's last reading.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Plausible {
    /// The device was not read yet.
    #[default]
    Unknown,
    /// So much.
    Most {
        /// Of the process.
        bytes: Bytes,
        /// All that the device has.
        total: Bytes,
    },
}

impl Plausible {
    pub(super) fn bytes(self) -> Bytes {
        if let Plausible::Most { bytes, .. } = self { bytes } else { MOST }
    }

    pub(super) fn total(self) -> Bytes {
        if let Plausible::Most { total, .. } = self { total } else { MOST }
    }
}

impl Holding {
    /// Bytes on the device that count against the grant: what its counters say, as far as it was granted that or NVML
    /// shows it.
    pub fn held(&self) -> Bytes {
        self.assumed.unwrap_or(self.counted()).min(self.granted.max(self.plausible.bytes()))
    }

    /// What its counters say that it holds.
    pub(super) fn counted(&self) -> Bytes {
        self.page.resident + self.page.unswappable
    }

    /// NVML was read, after granting began if it is `settled`. What was taken on the client's word alone is cut to what
    /// can be true; says whether it said more. What may be true is not cut: see [`Doubt`].
    pub(super) fn prove(&mut self, plausible: Plausible, settled: bool, began: Moment) -> bool {
        self.plausible = plausible;
        self.need(self.needed);
        let most = match self.proof {
            Proof::First => plausible.bytes(),
            Proof::Settled | Proof::Done => plausible.total(),
        };
        let mut overclaims = self.granted > most;
        self.granted = self.granted.min(most);
        if self.proof == Proof::Settled && settled {
            self.doubt = Some(Doubt::default());
        }
        if self.proof == Proof::First || settled {
            self.proof = Proof::Done;
        }
        if self.granted <= plausible.bytes() + self.needed.saturating_sub(self.counted()) {
            self.doubt = None;
        }
        // It said that it gave back what it does not need, and one look proves nothing.
        overclaims |=
            self.doubt.and_then(|doubt| doubt.answered).is_some_and(|at| began.since(at) >= OVERCLAIM);
        if self.counted() <= self.granted.max(plausible.bytes()) {
            self.overclaims_since = None;
            return overclaims;
        }
        // One look proves nothing: what a client asks its driver for is in its counters before the driver has made it.
        overclaims || began.since(*self.overclaims_since.get_or_insert(began)) >= OVERCLAIM
    }

    /// What nobody else can be granted: its grant, or what it holds beyond that.
    pub fn booked(&self) -> Bytes {
        let all = self.granted.max(self.held());
        if self.disbelieved { all.min(self.measured.unwrap_or(self.plausible.bytes())) } else { all }
    }

    /// Bytes that stay on the device whatever it is told.
    pub fn immovable(&self) -> Bytes {
        let reported: Bytes = self.unswappable.values().copied().sum();
        reported.max(self.page.unswappable).min(self.booked())
    }

    /// What it takes on the device to run without ever giving anything back.
    pub fn claimed(&self) -> Bytes {
        self.needed.max(self.held())
    }

    /// How much more it will probably ask for soon, beyond what it needs: it grows step by step.
    pub fn growing(&self, now: Moment) -> Bytes {
        self.growth.ahead(self.needed, now)
    }

    /// Granted and not used.
    pub fn unused(&self) -> Bytes {
        self.granted.saturating_sub(self.held())
    }

    /// A part of the grant came back. Says how much: no more than it had.
    pub(super) fn release(&mut self, ticket: Option<Ticket>, bytes: Bytes) -> Bytes {
        let believed = bytes.min(self.granted);
        self.granted -= believed;
        if self.granted < self.needed {
            self.complete = false;
        }
        if let Some(outgoing) = &mut self.outgoing
            && Some(outgoing.ticket) == ticket
        {
            outgoing.left = outgoing.left.saturating_sub(bytes);
        }
        believed
    }

    /// Its grant is in doubt: whether it is to be asked for what it does not need, which is so once a session.
    pub(super) fn ask_back(&mut self, commandable: bool, now: Moment) -> bool {
        let Some(doubt) = &mut self.doubt else { return false };
        // Who cannot be asked has no longer for its answer.
        doubt.since.get_or_insert(now);
        let asks = commandable && !doubt.asked && doubt.answered.is_none() && self.reclaiming.is_none();
        doubt.asked |= asks;
        asks
    }

    /// A reclaim ended.
    pub(super) fn reclaimed(&mut self, now: Moment) {
        self.reclaimed_at = now;
        if let Some(doubt) = self.doubt.as_mut().filter(|doubt| doubt.asked) {
            doubt.answered.get_or_insert(now);
        }
    }

    /// Whether it keeps what it was asked for, by now: it has not answered for so `long`. It is disbelieved then.
    pub(super) fn keeps(&mut self, long: Duration, now: Moment) -> bool {
        let late = |at: Moment| now.since(at) > long;
        let silent = |doubt: &Doubt| doubt.answered.is_none() && doubt.since.is_some_and(late);
        let ignored = self.reclaiming.take_if(|reclaiming| late(reclaiming.at)).is_some();
        if !ignored && !self.doubt.as_ref().is_some_and(silent) {
            return false;
        }
        // What it never took must not stay booked for it.
        (self.disbelieved, self.doubt, self.reclaimed_at) = (true, None, now);
        true
    }

    /// It says that it needs so much: no more than the device has, so that no claim makes a device contended for ever.
    pub(super) fn need(&mut self, total: Bytes) {
        self.needed = total.min(self.plausible.total());
    }

    pub(super) fn sample(&mut self, held: &Holdings, now: Moment) {
        self.page = Holdings {
            resident: held.resident.min(MOST),
            swapped: held.swapped.min(MOST),
            shadow: held.shadow.min(MOST),
            unswappable: held.unswappable.min(MOST),
            copied_out: held.copied_out.min(MOST),
            copied_in: held.copied_in.min(MOST),
            clean: held.clean.min(MOST),
            managed: held.managed.min(MOST),
        };
        self.assumed = None;
        // Counters are not read at one instant: only a total that stands still says what is needed now.
        let total = self.page.resident + self.page.swapped + self.page.unswappable;
        if self.page_total.replace(total) == Some(total) {
            self.need(total);
        }
        if !self.complete
            && self.page.swapped == Bytes::ZERO
            && self.held() >= self.needed
            && self.outgoing.is_none()
        {
            self.complete = self.granted >= self.needed;
        }
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back((now, self.page.resident + self.page.unswappable));
    }

    /// The least and the most it can have held while NVML was read from `began` on until the last sample. It cannot have
    /// held more than NVML `measured` of its process, or than the `rest` that NVML ascribes to no process where it does not
    /// list this one. While it moves memory, driver and counters differ by a step or two.
    pub(super) fn between(
        &mut self,
        began: Moment,
        measured: Option<Bytes>,
        rest: Bytes,
        paged: bool,
    ) -> (Bytes, Bytes) {
        self.measured = measured;
        if !paged {
            let held = self.granted.min(measured.unwrap_or_default());
            self.assumed = Some(held);
            return (held, held);
        }
        let last_before = self.samples.iter().rposition(|(at, _)| *at <= began);
        let held = self.samples.iter().skip(last_before.unwrap_or(0)).map(|(_, bytes)| *bytes);
        let high = held.clone().max().unwrap_or_default();
        // Without a look at its counters before the reading nobody knows that it held anything then.
        let low = last_before.and_then(|_| held.min()).unwrap_or_default();
        let steps = self.samples.iter().zip(self.samples.iter().skip(1));
        let step = steps.map(|((_, one), (_, next))| one.0.abs_diff(next.0)).max().unwrap_or_default();
        let step = if low == high && !self.moving() { 0 } else { step.min(STEP) };
        let most = measured.unwrap_or(rest);
        (Bytes(low.0.saturating_sub(step)).min(most), (high + Bytes(step)).min(most))
    }

    /// It swaps in or out, as far as messages tell.
    fn moving(&self) -> bool {
        self.outgoing.is_some() || (!self.complete && self.unused() > Bytes::ZERO)
    }
}
