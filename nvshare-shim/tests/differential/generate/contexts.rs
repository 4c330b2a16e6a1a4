//! Steps about contexts, and questions about memory.

use super::Generator;

impl Generator {
    pub(super) fn context(&mut self) {
        let (contexts, device) = (self.contexts.clone(), self.random.below(2));
        let context = self.taken(&contexts, 4);
        match self.random.below(16) {
            0 | 1 => {
                let slot = self.vacant(&contexts, 4);
                self.push("ctx_create", &[slot, device]);
                self.contexts.insert(slot);
                self.push("set", &[slot]);
                self.push("module", &[slot]);
                self.stream();
                self.allocate();
            }
            2 => {
                self.push("ctx_destroy", &[context]);
                if context != 0 {
                    self.contexts.remove(&context);
                }
            }
            3 => {
                let slot = self.vacant(&contexts, 4);
                self.push("retain", &[slot, device]);
                self.contexts.insert(slot);
            }
            4 => self.push("release", &[device]),
            5 if self.random.one_in(3) => self.push("reset", &[device]),
            6 => self.push("state", &[device]),
            7..=9 => self.push("set", &[context]),
            10 => self.push("push", &[context]),
            11 => self.push("pop", &[]),
            12 => self.push("peer_on", &[context]),
            13 => self.push("peer_off", &[context]),
            14 => {
                let bytes = 1024 * (1 + self.random.below(4));
                self.push("stack", &[bytes]);
            }
            _ => {
                let module = self.random.below(4);
                let verb = if self.random.one_in(2) { "module" } else { "module_end" };
                self.push(verb, &[module]);
            }
        }
    }

    pub(super) fn question(&mut self) {
        let slot = self.memory();
        let size = self.sizes[slot as usize];
        // Inside; what lies behind an allocation is up to the allocator.
        let at = match self.random.below(6) {
            0 | 1 => 0,
            2 | 3 => size.saturating_sub(1),
            _ => self.random.below(size.max(1)),
        };
        match self.random.below(11) {
            0 if !self.free => self.push("info", &[]),
            1 => {
                let device = self.random.below(2);
                self.push("total", &[device]);
            }
            2..=4 => {
                let number = self.random.below(21);
                self.push("attribute", &[slot, at, number]);
            }
            5 | 6 => {
                let mut mask = self.random.next() & 0x3f_fffe;
                if !self.random.one_in(8) {
                    // P2P tokens in a list are refused.
                    mask &= !(1 << 5);
                }
                self.push("attributes", &[slot, at, mask]);
            }
            7 => self.push("range", &[slot, at]),
            8 => {
                let device = self.random.below(2);
                self.push("access_of", &[slot, at, device]);
            }
            9 => self.push("retain_of", &[slot, at]),
            _ if self.random.one_in(6) => self.push("memops", &[slot, at]),
            _ => self.push("range", &[slot, at]),
        }
    }
}
