//! What one client holds on one device: its grant, what it needs, and what it has, by its counters and by NVML.

use std::collections::{BTreeMap, VecDeque};

use nvshare_common::counters::Holdings;
use nvshare_common::units::{Bytes, Ticket};

use crate::moment::Moment;

/// No device is larger: what a client says is cut to this, so that sums cannot overflow.
pub(super) const MOST: Bytes = Bytes(1 << 48);
/// How many samples of what a client holds are kept, to know what it held when NVML was read.
const SAMPLES: usize = 16;
/// The most that driver and counters are believed to differ by while memory moves: two of the largest extents.
pub(super) const STEP: u64 = 128 << 20;

/// A `SwapOut` that is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outgoing {
    /// Its number.
    pub ticket: Ticket,
    /// When it was sent.
    pub at: Moment,
    /// What is still to be released.
    pub left: Bytes,
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
    /// What it may have resident.
    pub granted: Bytes,
    /// What must be resident for it to run.
    pub needed: Bytes,
    /// What cannot be moved, by reason, as it reported.
    pub unswappable: BTreeMap<String, Bytes>,
    /// The last look at its counters.
    pub page: Holdings,
    /// Everything is resident, as far as messages tell.
    pub complete: bool,
    /// The swap out under way.
    pub outgoing: Option<Outgoing>,
    /// The reclaim under way.
    pub reclaiming: Option<Reclaiming>,
    /// When the last reclaim ended.
    pub reclaimed_at: Moment,
    /// Since when it has been granted memory without having become resident.
    pub granting_since: Option<Moment>,
    /// All it has, by its last counters, resident or not.
    pub(super) page_total: Option<Bytes>,
    /// What it held, by its counters, at moments.
    pub(super) samples: VecDeque<(Moment, Bytes)>,
    /// What NVML says of its process.
    pub measured: Option<Bytes>,
    /// What it is taken to hold, where there are no counters.
    pub(super) assumed: Option<Bytes>,
    /// The most it can hold beyond its grant, by NVML.
    pub(super) plausible: Plausible,
    /// Its grant is what a process said that nobody here ever granted anything: NVML has not been asked about it yet.
    pub(super) unproven: bool,
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

    /// NVML was read. What was taken on the client's word alone is cut to what can be true; says whether something was.
    pub(super) fn prove(&mut self, plausible: Plausible) -> bool {
        self.plausible = plausible;
        let most = if std::mem::take(&mut self.unproven) { plausible.bytes() } else { plausible.total() };
        let boasts = self.granted > most;
        self.granted = self.granted.min(most);
        boasts || self.counted() > self.granted.max(plausible.bytes())
    }

    /// What nobody else can be granted: its grant, or what it holds beyond that.
    pub fn booked(&self) -> Bytes {
        self.granted.max(self.held())
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

    /// Granted and not used.
    pub fn unused(&self) -> Bytes {
        self.granted.saturating_sub(self.held())
    }

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
            self.needed = total;
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
