//! Other hardware that may use this process's device memory by DMA: network cards (RDMA) and GDRCopy. What they registered
//! they find by physical address, so while one of their devices is open nothing of this process is moved.

use std::path::Path;

use crate::config;

/// An open device of that kind, where it is not said that such programs may be moved all the same
/// (`NVSHARE_SWAP_BESIDE_DMA`).
pub fn open_device() -> Option<String> {
    if config::get().swap_beside_dma {
        return None;
    }
    open_below(Path::new("/proc/self/fd"))
}

fn open_below(descriptors: &Path) -> Option<String> {
    let open = std::fs::read_dir(descriptors).ok()?.flatten();
    let targets =
        open.filter_map(|entry| std::fs::read_link(entry.path()).ok()?.into_os_string().into_string().ok());
    targets.into_iter().find(|target| target.starts_with("/dev/infiniband/uverbs") || target == "/dev/gdrdrv")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_network_card_is_found_among_other_files() {
        let directory = std::env::temp_dir().join(format!("nvshare-dma-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let link = |name: &str, target: &str| {
            let _ = std::fs::remove_file(directory.join(name));
            std::os::unix::fs::symlink(target, directory.join(name)).unwrap();
        };
        link("0", "/dev/null");
        link("1", "/dev/infiniband/rdma_cm");
        assert_eq!(open_below(&directory), None);
        link("2", "/dev/infiniband/uverbs0");
        assert_eq!(open_below(&directory).as_deref(), Some("/dev/infiniband/uverbs0"));
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
