//! The table of series, and the page that values are put on.

use nvshare_agent_core::snapshot::Histogram;
use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram as Distribution, LabelPair, Metric, MetricFamily, MetricType,
};

/// What is known of a series before it has a value.
pub(super) struct Definition {
    /// `nvshare_...`, in base units; counters end in `_total`.
    pub(super) name: &'static str,
    /// What it means, for people.
    pub(super) help: &'static str,
    /// Gauge, counter or histogram.
    pub(super) kind: MetricType,
    /// The names of its labels, in the order in which their values are given.
    pub(super) labels: &'static [&'static str],
}

macro_rules! series {
    ($($series:ident $kind:ident $name:literal $labels:tt $help:literal;)*) => {
        /// Every exported series.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Series { $($series),* }

        impl Series {
            /// In the order of the enum.
            pub(super) const TABLE: &[Definition] = &[$(Definition {
                name: concat!("nvshare_", $name),
                help: $help,
                kind: MetricType::$kind,
                labels: &$labels,
            }),*];

            /// Its line of the table.
            pub(super) const fn definition(self) -> &'static Definition {
                &Self::TABLE[self as usize]
            }
        }
    };
}

series! {
    Build GAUGE "build_info" ["release", "protocol"] "Always 1; the labels say which agent this is.";
    Uptime GAUGE "uptime_seconds" [] "How long the agent runs.";
    Ready GAUGE "ready" [] "1 when everything needed works.";
    PartMissing GAUGE "part_missing" ["part"] "1 when this part of the agent is missing or starting; /readyz says why.";
    Granting GAUGE "granting" [] "1 once the agent has heard of every client that was there before it, and grants memory.";
    Awaited GAUGE "awaited_processes" [] "Processes with the shim that have not said hello since the agent started.";

    LeaseFloor GAUGE "lease_floor_seconds" [] "The configured shortest lease.";
    LeaseCeiling GAUGE "lease_ceiling_seconds" [] "The configured longest lease while others wait.";
    LeaseFactor GAUGE "lease_factor" [] "The configured length of a lease in multiples of the cost of a switch.";

    DeviceInfo GAUGE "device_info" ["gpu", "UUID", "product"] "Always 1; the labels name the device.";
    DeviceTotal GAUGE "device_memory_bytes" ["gpu", "UUID"] "All memory of the device.";
    DeviceCapacity GAUGE "device_capacity_bytes" ["gpu", "UUID"] "What the agent may use of it: its memory, or the configured capacity if that is less.";
    DeviceUsed GAUGE "device_used_bytes" ["gpu", "UUID"] "Memory in use, by NVML.";
    DeviceReserve GAUGE "device_reserve_bytes" ["gpu", "UUID"] "Memory that is never granted.";
    DeviceGranted GAUGE "device_granted_bytes" ["gpu", "UUID"] "The sum of all grants.";
    DeviceResident GAUGE "device_resident_bytes" ["gpu", "UUID"] "Clients' memory that is on the device.";
    DeviceSwapped GAUGE "device_swapped_bytes" ["gpu", "UUID"] "Clients' memory that is on the host only.";
    DeviceShadow GAUGE "device_shadow_bytes" ["gpu", "UUID"] "Host copies of clients' memory, of what is on the device too.";
    DeviceEvictable GAUGE "device_evictable_bytes" ["gpu", "UUID"] "What of device_foreign_bytes may be managed memory, which the driver moves out of the way.";
    DeviceForeign GAUGE "device_foreign_bytes" ["gpu", "UUID"] "Memory that no grant covers: other processes, and what clients' contexts cost.";
    DeviceUnswappable GAUGE "device_unswappable_bytes" ["gpu", "UUID", "reason"] "Clients' memory that cannot be moved.";
    DeviceFree GAUGE "device_free_bytes" ["gpu", "UUID"] "What could be granted now.";
    DeviceNeeded GAUGE "device_needed_bytes" ["gpu", "UUID"] "The sum of what clients need in order to run; above the capacity they take turns.";
    DeviceExcess GAUGE "device_excess_bytes" ["gpu", "UUID"] "Grants above what there is: the agent is taking back.";
    DeviceContended GAUGE "device_contended" ["gpu", "UUID"] "1 while clients take turns.";
    DeviceReadingAge GAUGE "device_reading_age_seconds" ["gpu", "UUID"] "Age of the last reading from NVML.";
    Link GAUGE "link_bytes_per_second" ["gpu", "UUID", "direction"] "What the device's PCIe link can carry; absent where NVML cannot tell.";

    Clients GAUGE "clients" ["activity"] "Clients by what they are doing; waiting: want to run and must not, or their memory is on the way.";
    ClientsHindered GAUGE "clients_hindered" ["why"] "Clients that cannot run as things are (never_runs), or get no more memory so that one that came before can run (latecomer); nvshare-agent status says which.";
    ClientsEnded COUNTER "clients_ended_total" [] "Clients that ended.";
    ClientInfo GAUGE "client_info" ["client", "namespace", "pod", "container", "process", "shim"] "Always 1; the labels say which release of the library the client has loaded.";
    ClientActivity GAUGE "client_activity" ["client", "namespace", "pod", "container", "process", "activity"] "1 for what the client is doing now.";
    ClientResident GAUGE "client_resident_bytes" ["client", "namespace", "pod", "container", "process", "gpu", "UUID"] "The client's memory that is on the device.";
    ClientSwapped GAUGE "client_swapped_bytes" ["client", "namespace", "pod", "container", "process", "gpu", "UUID"] "The client's memory that is on the host only.";
    ClientShadow GAUGE "client_shadow_bytes" ["client", "namespace", "pod", "container", "process", "gpu", "UUID"] "Host copies of the client's memory.";
    ClientGranted GAUGE "client_granted_bytes" ["client", "namespace", "pod", "container", "process", "gpu", "UUID"] "What the client may have on the device now.";
    ClientNeeded GAUGE "client_needed_bytes" ["client", "namespace", "pod", "container", "process", "gpu", "UUID"] "What must be on the device for the client to run.";
    ClientUnswappable GAUGE "client_unswappable_bytes" ["client", "namespace", "pod", "container", "process", "gpu", "UUID", "reason"] "The client's memory that cannot be moved.";
    ClientUnyielding GAUGE "client_unyielding" ["client", "namespace", "pod", "container", "process"] "1 while the client cannot be stopped and others are served around it.";
    ClientWaiting GAUGE "client_waiting_seconds" ["client", "namespace", "pod", "container", "process"] "For how long the client has been waiting to run; 0 when it is not.";
    ClientIdle GAUGE "client_idle_seconds" ["client", "namespace", "pod", "container", "process"] "For how long the client has done nothing on its devices.";
    ClientLease GAUGE "client_lease_seconds" ["client", "namespace", "pod", "container", "process"] "What is left of the client's lease; negative when nobody else needs the memory; absent without a lease.";
    ClientWeight GAUGE "client_weight" ["client", "namespace", "pod", "container", "process"] "The client's share of the time among clients of its priority; 1 is usual.";
    ClientPriority GAUGE "client_priority" ["client", "namespace", "pod", "container", "process", "priority"] "1 for the client's priority: high, normal or low.";
    ClientPinned GAUGE "client_pinned" ["client", "namespace", "pod", "container", "process"] "1 when the client is never swapped out, by order.";
    ClientHeldOut GAUGE "client_held_out" ["client", "namespace", "pod", "container", "process"] "1 when the client is swapped out by order, and waits for another.";
    ClientArenas GAUGE "client_arena_bytes" ["client", "namespace", "pod", "container", "process"] "Host memory handed to the client for shadows.";
    ClientCalls COUNTER "client_calls_total" ["client", "namespace", "pod", "container", "process", "call"] "Driver calls by the client's application, as its shim counts them.";
    ClientCopied COUNTER "client_swap_bytes_total" ["client", "namespace", "pod", "container", "process", "direction"] "Bytes that swapping copied for the client.";
    ClientUvmFaults COUNTER "client_uvm_faults_total" ["client", "namespace", "pod", "container", "process", "gpu", "UUID"] "Page faults of the device on the client's managed memory; absent until there is one, and unless nvshare_uvm_source{source=\"tools\"} is 1.";
    ClientUvmBytes COUNTER "client_uvm_bytes_total" ["client", "namespace", "pod", "container", "process", "gpu", "UUID", "direction"] "The client's managed memory that the driver moved from the device (out) and to it (in); absent like client_uvm_faults_total.";

    Switches HISTOGRAM "switch_seconds" [] "Time of a switch: from the first order to stop until all memory of the client that comes is resident.";
    SwitchDrain HISTOGRAM "switch_drain_seconds" [] "The part of a switch in which work already submitted was finished.";
    SwitchBytes COUNTER "switch_bytes_total" ["direction"] "Bytes that finished switches moved to the host (out) and to the devices (in).";
    Waits HISTOGRAM "waiting_seconds" [] "How long clients waited, from wanting to run until they ran.";
    Swaps HISTOGRAM "swap_seconds" ["direction"] "Time of one swap out, and of one swap in.";
    SwapBytes COUNTER "swap_bytes_total" ["direction"] "Bytes that swapping copied to the host (out) and to the devices (in).";
    SwapClean COUNTER "swap_clean_bytes_total" [] "Bytes that were swapped out without a copy: zero, or unchanged since the last one.";
    SwapFailures COUNTER "swap_failures_total" [] "Swap outs that could not give back all they were asked for.";
    Stops COUNTER "stops_total" [] "Times that clients were stopped.";
    DrainStalls COUNTER "drain_stalls_total" [] "Drains that were given up because the work made no progress.";

    Calls COUNTER "calls_total" ["seen_by", "made_by", "call"] "Driver calls of all clients, by who counted them (shim, uprobes) and who made them (application, engine).";
    UvmFaults COUNTER "uvm_faults_total" [] "Page faults of devices on managed memory of clients; absent unless nvshare_uvm_observed is 1.";
    UvmCpuFaults COUNTER "uvm_cpu_faults_total" [] "Page faults of the host's processors on managed memory of clients; absent unless nvshare_uvm_source{source=\"tools\"} is 1.";
    UvmBytes COUNTER "uvm_moved_bytes_total" ["direction"] "Managed memory of clients that the driver moved to the host (out) and to the devices (in); absent unless nvshare_uvm_observed is 1.";
    UvmObserved GAUGE "uvm_observed" [] "1 while the kernel module for managed memory is observed; nvshare-agent probes says why not.";
    UvmSource GAUGE "uvm_source" ["source"] "1 for how managed memory is observed: by the counters of the kernel module (tools), or by kprobes in it (kprobes).";
    UvmProcesses GAUGE "uvm_followed_processes" [] "Processes with managed memory that have counters in the kernel module now; absent unless nvshare_uvm_source{source=\"tools\"} is 1.";
    UvmUnattributed COUNTER "uvm_unattributed_total" ["reason"] "Events of managed memory that were charged to nobody: of an address space older than the agent (unknown), without room or counters (refused), or that made no sense (unreadable); absent unless nvshare_uvm_observed is 1.";

    ForeignProcesses GAUGE "foreign_processes" [] "Processes that use the driver without being clients.";
    ForeignAllocated GAUGE "foreign_allocated_bytes" [] "Device memory that such processes were seen to allocate and not to free.";
    ForeignManaged GAUGE "foreign_managed_bytes" [] "The same for managed memory.";
    ForeignPod GAUGE "foreign_pod_allocated_bytes" ["namespace", "pod", "container"] "Device memory that such processes were seen to allocate and not to free, by container; 64 at most, the rest is the container other.";

    UprobesLoaded GAUGE "uprobes_loaded" [] "1 when the eBPF programs are in the kernel.";
    UprobeFiles GAUGE "uprobe_files" ["state"] "Files of the CUDA driver that were found: attached, or failed.";
    UprobeFunctions GAUGE "uprobe_functions" ["state"] "Functions of these files: attached, or refused because no safe place for a probe was found.";
    Events COUNTER "events_total" [] "Records that the uprobes sent.";
    EventsLost COUNTER "events_lost_total" ["reason"] "Records that were lost: no room in the ring because the agent did not read in time (full), too many of one process or container (throttled), a call that returned without a known beginning (unmatched), a result that is not observed on this kernel (unfollowed); who lost one counts as inexact until all its contexts have ended.";
    CallsUnattributed COUNTER "calls_unattributed_total" [] "Calls by processes for which there was no counter left.";

    HostBudget GAUGE "host_budget_bytes" [] "Host memory that may be used for what is swapped out.";
    HostArenas GAUGE "host_arena_bytes" ["state"] "Host memory for shadows: handed_out to clients, or being_made.";
    HostMissing GAUGE "host_missing_bytes" [] "Host memory that clients which take turns would need and there is not.";

    SessionsOpened COUNTER "sessions_opened_total" [] "Sessions of clients that were opened.";
    SessionsRefused COUNTER "sessions_refused_total" ["reason"] "Connections of clients that were refused.";
    SessionsClosed COUNTER "sessions_closed_total" ["reason"] "Sessions of clients that ended.";
}

/// The values of one scrape.
pub(super) struct Page(Vec<Vec<Metric>>);

impl Page {
    /// Nothing on it.
    pub(super) fn new() -> Page {
        Page(Series::TABLE.iter().map(|_| Vec::new()).collect())
    }

    /// Puts a gauge or a counter on the page; `labels` are the values for the names in the table.
    pub(super) fn put(&mut self, series: Series, labels: &[&str], value: f64) {
        let mut metric = labelled(series, labels);
        if series.definition().kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.0[series as usize].push(metric);
    }

    /// Puts a distribution on the page.
    pub(super) fn distribution(&mut self, series: Series, labels: &[&str], histogram: &Histogram) {
        let buckets = histogram.bounds.iter().zip(&histogram.counts).map(|(bound, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(*bound);
            bucket.set_cumulative_count(*count);
            bucket
        });
        let mut distribution = Distribution::default();
        distribution.set_bucket(buckets.collect());
        distribution.set_sample_sum(histogram.sum);
        distribution.set_sample_count(histogram.count);
        let mut metric = labelled(series, labels);
        metric.set_histogram(distribution);
        self.0[series as usize].push(metric);
    }

    /// The page as Prometheus' crate has it; series without values are left out.
    pub(super) fn families(self) -> Vec<MetricFamily> {
        let filled = Series::TABLE.iter().zip(self.0).filter(|(_, metrics)| !metrics.is_empty());
        let families = filled.map(|(definition, metrics)| {
            let mut family = MetricFamily::default();
            family.set_name(definition.name.to_owned());
            family.set_help(definition.help.to_owned());
            family.set_field_type(definition.kind);
            family.set_metric(metrics);
            family
        });
        families.collect()
    }
}

fn labelled(series: Series, values: &[&str]) -> Metric {
    let names = series.definition().labels;
    debug_assert_eq!(names.len(), values.len(), "{series:?} has the labels {names:?}");
    let pairs = names.iter().zip(values).map(|(name, value)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    });
    Metric::from_label(pairs.collect())
}
