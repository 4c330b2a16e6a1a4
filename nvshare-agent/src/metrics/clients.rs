//! What is exported of each client.

use nvshare_agent_core::snapshot::{Activity, Client, Device, State};
use nvshare_common::bytes::Bytes;

use super::lines::{Lines, Who};
use super::series::Series;
use super::{CLIENTS, bytes, few, flag, label};

/// The series of all clients, as many as may have some of their own.
pub(super) fn clients(lines: &mut Lines, state: &State) {
    for client in state.clients.iter().take(CLIENTS) {
        one(lines, client, &state.devices);
    }
}

fn one(lines: &mut Lines, client: &Client, devices: &[Device]) {
    let owner = &client.owner;
    let who = &Who::new([
        &client.client.0.to_string(),
        &owner.namespace,
        &owner.pod,
        &owner.container,
        &label(&client.name),
    ]);
    lines.put(Series::ClientInfo, who, &[&label(&client.shim)], 1.0);
    lines.put(Series::ClientActivity, who, &[client.activity.name()], 1.0);
    lines.put(Series::ClientPriority, who, &[client.priority.name()], 1.0);
    let figures = [
        (Series::ClientUnyielding, flag(client.activity == Activity::Unyielding)),
        (Series::ClientWaiting, client.waiting_seconds),
        (Series::ClientIdle, client.idle_seconds),
        (Series::ClientWeight, client.weight),
        (Series::ClientPinned, flag(client.pinned)),
        (Series::ClientHeldOut, flag(client.held_out)),
        (Series::ClientArenas, bytes(client.arena_bytes)),
    ];
    for (series, figure) in figures {
        lines.put(series, who, &[], figure);
    }
    if let Some(left) = client.lease_seconds {
        lines.put(Series::ClientLease, who, &[], left);
    }
    for held in &client.devices {
        let device = devices.iter().find(|device| device.uuid == held.uuid);
        // Empty once NVML does not list it any more.
        let index = device.map(|device| device.index.to_string()).unwrap_or_default();
        let gpu = [index.as_str(), &held.uuid];
        let figures = [
            (Series::ClientResident, held.resident),
            (Series::ClientSwapped, held.swapped),
            (Series::ClientShadow, held.shadow),
            (Series::ClientGranted, held.granted),
            (Series::ClientNeeded, held.needed),
        ];
        for (series, figure) in figures {
            lines.put(series, who, &gpu, bytes(figure));
        }
        if held.uvm_faults > 0 || held.uvm_in + held.uvm_out > Bytes::ZERO {
            lines.put(Series::ClientUvmFaults, who, &gpu, held.uvm_faults as f64);
            lines.put(Series::ClientUvmBytes, who, &[gpu[0], gpu[1], "in"], bytes(held.uvm_in));
            lines.put(Series::ClientUvmBytes, who, &[gpu[0], gpu[1], "out"], bytes(held.uvm_out));
        }
        for (reason, amount) in few(&held.unswappable_reasons) {
            lines.put(Series::ClientUnswappable, who, &[gpu[0], gpu[1], &reason], bytes(amount));
        }
    }
    for (call, count) in client.totals.application_calls.iter().filter(|(_, count)| *count > 0) {
        lines.put(Series::ClientCalls, who, &[call], count as f64);
    }
    lines.put(Series::ClientCopied, who, &["out"], bytes(client.totals.copied_out));
    lines.put(Series::ClientCopied, who, &["in"], bytes(client.totals.copied_in));
}
