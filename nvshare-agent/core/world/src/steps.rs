//! How time passes: messages arrive, NVML answers, the core decides.

use std::time::Instant;

use nvshare_agent_core::conductor::Command;
use nvshare_agent_core::ledger::Page;
use nvshare_agent_core::reading::{Reading, Report};
use nvshare_common::bytes::Bytes;
use nvshare_common::counters::Holdings;
use nvshare_common::probe::Call;

use crate::World;

/// How long until the core decides anew although nothing came, in microseconds.
const fn pause(pressing: bool) -> u64 {
    if pressing { 10_000 } else { 100_000 }
}

impl World {
    pub(crate) fn step(&mut self) {
        self.now += 1000;
        let (mut news, mut read) = (false, false);
        for index in 0..self.shims.len() {
            self.act(index);
            while let Some((at, session, message)) = self.shims[index].outbox.pop_front() {
                if at > self.now {
                    self.shims[index].outbox.push_front((at, session, message));
                    break;
                }
                news = true;
                let now = self.moment();
                let began = Instant::now();
                let kept = self.kept(index, &message);
                let client = self.shims[index].id;
                let heard = self.core.hear_with(client, session, message, || kept, now);
                self.spent += began.elapsed();
                self.deliver(heard.commands);
            }
        }
        self.fault();
        while self.readings.front().is_some_and(|(at, _)| *at <= self.now) {
            let (_, report) = self.readings.pop_front().unwrap();
            let began = Instant::now();
            self.sample();
            let now = self.moment();
            self.core.devices(&report, now);
            self.core.bury(now);
            self.spent += began.elapsed();
            news = true;
        }
        news |= self.make_arenas();
        if news || self.now >= self.next_decision {
            let began = Instant::now();
            self.sample();
            let now = self.moment();
            let outcome = self.core.decide(now);
            let limits = self.core.limits();
            self.turns.push(std::mem::take(&mut self.spent) + began.elapsed());
            self.deliver(limits);
            self.deliver(outcome.commands);
            let arenas = self.plan_arenas();
            self.deliver(arenas);
            read = outcome.read;
            self.next_decision = self.now + pause(outcome.pressing);
        }
        if (read || self.now.is_multiple_of(100_000)) && self.readings.is_empty() {
            let report = self.report();
            self.readings.push_back((self.now + 2000, report));
        }
        self.check();
        self.check_pinned();
    }

    fn report(&self) -> Report {
        let devices = self
            .cards
            .iter()
            .enumerate()
            .map(|(index, (device, total))| Reading {
                device: *device,
                index: index as u32,
                name: "card".into(),
                total: Bytes(*total),
                used: Bytes(self.used(*device)),
                link: None,
                per_process: self
                    .shims
                    .iter()
                    .filter(|shim| shim.alive)
                    .map(|shim| {
                        let held = shim.resident.get(device).copied().unwrap_or_default() + shim.overhead;
                        (shim.process.pid, Bytes(held))
                    })
                    .collect(),
            })
            .collect();
        Report { began: self.moment(), devices, complete: true, problem: None }
    }

    fn sample(&mut self) {
        let now = self.moment();
        for (index, shim) in self.shims.iter().enumerate().filter(|(_, shim)| shim.alive) {
            let mut page = Page::default();
            page.calls.application[Call::Launch as usize] = shim.launches;
            for (device, total) in &shim.total {
                let resident = shim.resident.get(device).copied().unwrap_or_default();
                let fixed = shim.fixed.min(resident);
                let held = Holdings {
                    resident: Bytes(resident - fixed),
                    unswappable: Bytes(fixed),
                    swapped: Bytes(total - resident),
                    shadow: Bytes(shim.shadow.get(device).copied().unwrap_or_default()),
                    ..Holdings::default()
                };
                page.holdings.push((*device, held));
            }
            if let (Some(managed), Some((_, held))) = (self.managed.get(&index), page.holdings.first_mut()) {
                held.managed = Bytes(managed.bytes);
            }
            self.core.sample(shim.id, &page, now);
        }
    }

    pub(crate) fn deliver(&mut self, commands: Vec<Command>) {
        for command in commands {
            let at = self.now + 200;
            if let Some(shim) = self.shims.iter_mut().find(|shim| shim.id == command.client && shim.alive)
                && shim.session == Some(command.session)
            {
                shim.inbox.push_back((at, command.message));
            }
        }
    }
}
