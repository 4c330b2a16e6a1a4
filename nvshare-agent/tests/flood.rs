//! The conductor's task under more observations than it can book.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nvshare_agent::conductor::{self, Conductor, Input};
use nvshare_agent::device;
use nvshare_agent_core::moment::Moment;
use nvshare_agent_core::observation::{Observation, Seen, What};
use nvshare_agent_core::process::Process;
use nvshare_agent_core::settings::Settings;
use tokio::sync::oneshot;

#[test]
fn a_flood_of_observations_keeps_nobody_else_waiting() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let _inside = runtime.enter();
    let (inputs, heard) = conductor::inputs();
    let (observations, seen) = conductor::observations();
    let poll = device::start("/nowhere".into(), |_| {}, |_| {}).unwrap();
    let (conductor, _state) = Conductor::new(Settings::default(), poll, &inputs, None).unwrap();
    runtime.spawn(conductor.run(heard, seen, std::future::pending()));

    let process = Process { pid: std::process::id(), start: 1 };
    let what = What::Launched { at: Moment(1), parameters: vec![7; 16] };
    let launch = Seen::Process(Observation { process, what });
    let over = Arc::new(AtomicBool::new(false));
    let flood = std::thread::spawn({
        let (over, observations) = (Arc::clone(&over), observations.clone());
        move || {
            let mut batches = 0;
            while !over.load(Ordering::Relaxed)
                && observations.blocking_send(vec![launch.clone(); 4096]).is_ok()
            {
                batches += 1;
            }
            batches
        }
    });
    // Whatever else comes is heard within a batch or two, also when the queue is full.
    while observations.capacity() > 0 {
        std::thread::yield_now();
    }
    for _ in 0..20 {
        let (answer, answered) = oneshot::channel();
        let asked = Instant::now();
        inputs.blocking_send(Input::Set { changes: Vec::new(), answer }).unwrap();
        answered.blocking_recv().unwrap().unwrap();
        assert!(asked.elapsed() < Duration::from_secs(1), "heard after {:?}", asked.elapsed());
    }
    over.store(true, Ordering::Relaxed);
    assert!(flood.join().unwrap() >= 4);
}
