//! What the kernel starts from: the modules that it reaches the shared file system by, busybox and a script.
//! Reads the modules; never loads one.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::archive::Archive;
use super::guest;
use super::kernel::Kernel;

/// What it takes to have this machine's files, by name: a bus, a transport, a file system, and the layer over it.
const NEEDED: [&str; 4] = ["virtio_pci", "9pnet_virtio", "9p", "overlay"];

/// What the kernel is started from.
///
/// # Errors
/// A module that is needed is neither there nor built in, or cannot be read.
pub fn initramfs(kernel: &Kernel, busybox: &Path, init: &str) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for folder in guest::FOLDERS {
        archive.folder(folder);
    }
    archive.file("init", init.as_bytes());
    archive.file(guest::INITIAL_BUSYBOX, &read(busybox)?);
    if let Some(modules) = &kernel.modules {
        let folder = modules.join(&kernel.release);
        let text = |name: &str| {
            let path = folder.join(name);
            fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        let (dependencies, built_in) = (text("modules.dep")?, text("modules.builtin")?);
        let order = order(&dependencies, &built_in, &NEEDED)?;
        for (number, module) in order.iter().enumerate() {
            // The script loads them as their names are sorted.
            let name = format!("{}/{number:03}", guest::INITIAL_MODULES);
            archive.file(&name, &read(&folder.join(module))?);
        }
    }
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| path.display().to_string())
}

/// The files of `wanted` modules and of all that they depend on, each after those. `dependencies` is the kernel's
/// `modules.dep`, `built_in` its `modules.builtin`.
fn order<'a>(dependencies: &'a str, built_in: &str, wanted: &[&str]) -> Result<Vec<&'a str>> {
    let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let all: BTreeMap<&str, &str> = lines.collect();
    let by_name: BTreeMap<String, &str> = all.keys().map(|&file| (name(file), file)).collect();
    let mut ordered = Vec::new();
    for &module in wanted {
        match by_name.get(module) {
            Some(file) => add(&all, file, &mut ordered),
            None if built_in.lines().any(|file| name(file) == module) => {}
            None => bail!("the kernel has no module {module}, and has not got it built in"),
        }
    }
    Ok(ordered)
}

fn add<'a>(all: &BTreeMap<&'a str, &'a str>, file: &'a str, ordered: &mut Vec<&'a str>) {
    if ordered.contains(&file) {
        return;
    }
    for dependency in all
        .get(file)
        .into_iter()
        .flat_map(|list| list.split_whitespace())
    {
        add(all, dependency, ordered);
    }
    ordered.push(file);
}

/// A module's name: its files have dashes where the kernel has underscores.
fn name(file: &str) -> String {
    let base = file.rsplit('/').next().unwrap_or(file);
    base.split('.').next().unwrap_or(base).replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "kernel/fs/9p/9p.ko: kernel/net/9p/9pnet.ko kernel/fs/netfs/netfs.ko\n\
                                kernel/net/9p/9pnet.ko:\nkernel/fs/netfs/netfs.ko:\n\
                                kernel/drivers/virtio/virtio-pci.ko: kernel/drivers/virtio/virtio.ko\n\
                                kernel/drivers/virtio/virtio.ko:\n\
                                kernel/net/9p/9pnet_virtio.ko: kernel/net/9p/9pnet.ko kernel/drivers/virtio/virtio.ko\n";

    #[test]
    fn a_module_comes_once_and_after_those_that_it_depends_on() {
        let wanted = ["virtio_pci", "9pnet_virtio", "9p"];
        let order = order(DEPENDENCIES, "", &wanted).unwrap();
        assert_eq!(order.len(), 6, "{order:?}");
        let place = |name: &str| order.iter().position(|file| file.ends_with(name)).unwrap();
        assert!(place("/virtio.ko") < place("virtio-pci.ko"));
        assert!(place("/9pnet.ko") < place("9pnet_virtio.ko"));
        assert!(place("netfs.ko") < place("/9p.ko"));
    }

    #[test]
    fn what_is_built_in_is_not_loaded_and_what_is_nowhere_is_named() {
        let built_in = "kernel/fs/overlayfs/overlay.ko\n";
        assert!(
            order(DEPENDENCIES, built_in, &["overlay"])
                .unwrap()
                .is_empty()
        );
        let error = order(DEPENDENCIES, "", &["overlay"]).unwrap_err();
        assert!(error.to_string().contains("overlay"), "{error}");
    }
}
