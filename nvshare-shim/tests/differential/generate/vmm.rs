//! Steps about memory that the program maps itself.

use super::{BLOCK, Generator, MIB};
use crate::world::{MEMORIES, SLOTS};

impl Generator {
    pub(super) fn vmm(&mut self) {
        let (slot, physicals) = (self.memory(), self.physicals.clone());
        let blocks = self.random.below(3) + 1;
        let at = self.random.below(3) * BLOCK;
        let types = self.random.pick(&[0, 0, 1]);
        match self.random.below(13) {
            0 => {
                let slots = self.memories.clone();
                let slot = self.vacant(&slots, MEMORIES as u64);
                self.sizes[slot as usize] = 8 * MIB;
                self.push("reserve", &[slot, 8 * MIB]);
                self.memories.insert(slot);
            }
            1 | 2 => {
                let physical = self.vacant(&physicals, SLOTS as u64);
                let device = u64::from(self.random.one_in(5));
                self.push("create", &[physical, blocks * BLOCK, device, types]);
                self.physicals.insert(physical);
            }
            3 | 4 => {
                // Created and mapped, with access: what programs do.
                let physical = self.vacant(&physicals, SLOTS as u64);
                self.push("create", &[physical, blocks * BLOCK, 0, types]);
                self.push("map", &[slot, at, physical]);
                self.push("access", &[slot, at, blocks * BLOCK, 0, 3]);
                if self.random.one_in(2) {
                    self.push("drop", &[physical]);
                } else {
                    self.physicals.insert(physical);
                }
            }
            5 => {
                let physical = self.taken(&physicals, SLOTS as u64);
                self.push("map", &[slot, at, physical]);
            }
            6 => {
                let (device, flags) = (self.random.pick(&[0, 0, 0, 1]), self.random.pick(&[3, 3, 3, 1, 0]));
                self.push("access", &[slot, at, blocks * BLOCK, device, flags]);
            }
            7 | 8 => self.push("unmap", &[slot, at, blocks * BLOCK]),
            9 => {
                let physical = self.taken(&physicals, SLOTS as u64);
                self.push("drop", &[physical]);
                self.physicals.remove(&physical);
            }
            10 => {
                let physical = self.vacant(&physicals, SLOTS as u64);
                self.push("regain", &[physical, slot, at]);
                self.push("properties", &[physical]);
                self.physicals.insert(physical);
            }
            11 => {
                let physical = self.taken(&physicals, SLOTS as u64);
                let kind = self.random.pick(&[1, 1, 2]);
                self.push("export", &[physical, kind]);
            }
            _ => self.push("unreserve", &[slot]),
        }
    }
}
