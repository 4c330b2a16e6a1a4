//! The library as the agent uses it: through nvml-wrapper. One test, because the cards come from the environment.

#![expect(unsafe_code, reason = "a variable of the environment, before there are threads")]

use std::path::PathBuf;

use nvml_wrapper::Nvml;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvshare_sim_card::{Bus, Cards, Config, FaultPlan};

fn library() -> PathBuf {
    let executable = std::env::current_exe().expect("the path of this test");
    executable
        .ancestors()
        .map(|directory| directory.join("libnvidia_ml.so"))
        .find(|path| path.is_file())
        .expect("libnvidia_ml.so is built along with its tests")
}

#[test]
fn nvml_wrapper_sees_the_cards_and_who_uses_them() {
    let directory = tempfile::TempDir::with_prefix_in("nvshare-nvml-test-", "/dev/shm").unwrap();
    let config =
        Config { cards: 2, card_bytes: 64 << 20, link_bytes_per_second: 15_750_000_000, ..Config::default() };
    let member = Cards::open(directory.path(), &config).unwrap().join(FaultPlan::default()).unwrap();
    // SAFETY: the only test of this executable, and no other thread reads the environment now.
    unsafe { std::env::set_var("NVSHARE_SIM_DIR", directory.path()) };

    let nvml = Nvml::builder().lib_path(library().as_os_str()).init().unwrap();
    assert_eq!(nvml.device_count().unwrap(), 2);
    assert_eq!(nvml.sys_driver_version().unwrap(), nvshare_sim_card::DRIVER_VERSION);
    assert!(matches!(nvml.device_by_index(2), Err(NvmlError::InvalidArg)));

    let (first, second) = (nvml.device_by_index(0).unwrap(), nvml.device_by_index(1).unwrap());
    let uuid = first.uuid().unwrap();
    assert!(uuid.starts_with("GPU-") && uuid.len() == 40, "{uuid}");
    assert_ne!(uuid, second.uuid().unwrap());
    assert_eq!(nvml.device_by_uuid(uuid.as_str()).unwrap().index().unwrap(), 0);
    assert!(matches!(nvml.device_by_uuid("GPU-0"), Err(NvmlError::NotFound)));
    assert_eq!(first.name().unwrap(), nvshare_sim_card::DEVICE_NAME);
    assert_eq!((first.current_pcie_link_gen().unwrap(), first.current_pcie_link_width().unwrap()), (3, 16));
    assert_eq!(first.pci_info().unwrap().bus_id, "00000000:01:00.0");

    assert_eq!(first.running_compute_processes_count().unwrap(), 0);
    member.create(0, 10 << 20, 0).unwrap();
    let memory = first.memory_info().unwrap();
    assert_eq!((memory.total, memory.used, memory.free), (64 << 20, 10 << 20, 54 << 20));
    assert_eq!(second.memory_info().unwrap().used, 0);
    let processes = first.running_compute_processes().unwrap();
    assert_eq!(processes.len(), 1);
    assert_eq!(processes[0].pid, std::process::id());
    assert!(matches!(processes[0].used_gpu_memory, UsedGpuMemory::Used(bytes) if bytes == 10 << 20));
    assert!(first.running_graphics_processes().unwrap().is_empty());
    assert!(nvml.sys_process_name(std::process::id(), 512).unwrap().contains("wrapper"));

    let cards = Cards::open(directory.path(), &config).unwrap();
    cards.set_bus(0, Bus::Lost).unwrap();
    assert!(matches!(first.memory_info(), Err(NvmlError::GpuLost)));
    assert!(matches!(nvml.device_by_index(0), Err(NvmlError::GpuLost)));
    assert_eq!(second.memory_info().unwrap().used, 0, "the other one answers");
    cards.set_bus(0, Bus::Unlisted).unwrap();
    assert_eq!(nvml.device_count().unwrap(), 2, "NVML numbers the cards when it starts");
    assert!(matches!(nvml.device_by_index(0), Err(NvmlError::GpuLost)));
    let uuid = second.uuid().unwrap();
    nvml.shutdown().unwrap();
    let nvml = Nvml::builder().lib_path(library().as_os_str()).init().unwrap();
    assert_eq!((nvml.device_count().unwrap(), nvml.device_by_index(0).unwrap().uuid().unwrap()), (1, uuid));
    cards.set_bus(0, Bus::There).unwrap();
    nvml.shutdown().unwrap();
    let nvml = Nvml::builder().lib_path(library().as_os_str()).init().unwrap();
    assert_eq!(nvml.device_count().unwrap(), 2);
    assert_eq!(nvml.device_by_index(0).unwrap().memory_info().unwrap().used, 10 << 20);
    nvml.shutdown().unwrap();
}
