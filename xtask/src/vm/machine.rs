//! Runs QEMU: with KVM where that works, else emulated, and no longer than it may. Owns the folder of a run.
//! Never looks into what the guest does.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::guest::{ROOT_TAG, SHARED_TAG};

const PROGRAM: &str = "qemu-system-x86_64";
/// How often it is looked at.
const POLL: Duration = Duration::from_millis(100);
/// Begins the name of a run's folder, followed by the process's id.
const PREFIX: &str = "run-";

/// Who executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor.
    Kvm,
    /// QEMU.
    Emulation,
}

impl Accelerator {
    /// What there is on this machine.
    pub fn found() -> Self {
        let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let device = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm");
        Self::of(&processor, device.is_ok())
    }

    /// By `/proc/cpuinfo`, and whether the device can be opened, which may be there without the processor's
    /// being able to.
    fn of(processor: &str, device: bool) -> Self {
        let mut flags = processor
            .lines()
            .filter_map(|line| line.strip_prefix("flags")?.split_once(':'))
            .flat_map(|(_, flags)| flags.split_whitespace());
        if device && flags.any(|flag| flag == "vmx" || flag == "svm") {
            Self::Kvm
        } else {
            Self::Emulation
        }
    }

    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Kvm => "by KVM",
            Self::Emulation => "emulated, as there is no KVM (many times as slow)",
        }
    }

    fn option(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Emulation => "tcg,thread=multi",
        }
    }
}

/// A guest to be.
pub struct Machine<'a> {
    /// Its kernel.
    pub image: &'a Path,
    /// What that starts from.
    pub initramfs: &'a Path,
    /// The folder that it may write to.
    pub shared: &'a Path,
    /// Who executes it.
    pub accelerator: Accelerator,
}

impl Machine<'_> {
    /// QEMU's arguments: no device but two processors, a console that is this program's output, and two file
    /// systems.
    fn arguments(&self) -> Vec<String> {
        let folder = |tag: &str, path: &Path, more: &str| {
            // QEMU reads a comma as the end, and two as one.
            let path = path.display().to_string().replace(',', ",,");
            [
                "-fsdev".to_owned(),
                format!("local,id={tag},path={path},security_model=none{more}"),
                "-device".to_owned(),
                format!("virtio-9p-pci,fsdev={tag},mount_tag={tag}"),
            ]
        };
        let fixed = "-nodefaults -no-user-config -no-reboot -display none -monitor none -serial stdio -smp 2 -m 4096 \
                     -cpu max,la57=off";
        let mut arguments: Vec<String> = fixed.split_whitespace().map(str::to_owned).collect();
        arguments.extend(["-accel", self.accelerator.option(), "-kernel"].map(str::to_owned));
        arguments.push(self.image.display().to_string());
        arguments.extend(["-initrd".to_owned(), self.initramfs.display().to_string()]);
        // A host with much to do is no broken timer.
        let line = "console=ttyS0 panic=-1 quiet mitigations=off no_timer_check nowatchdog";
        arguments.extend(["-append".to_owned(), line.to_owned()]);
        arguments.extend(folder(
            ROOT_TAG,
            Path::new("/"),
            ",readonly=on,multidevs=remap",
        ));
        arguments.extend(folder(SHARED_TAG, self.shared, ""));
        arguments
    }
}

/// Runs the guest until it has switched itself off.
///
/// # Errors
/// It does not start, fails, or is not through within `limit`.
pub fn run(machine: &Machine<'_>, limit: Duration) -> Result<()> {
    // It dies with this process, however that ends.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--", PROGRAM]);
    command.args(machine.arguments()).stdin(Stdio::null());
    let mut child = Running(command.spawn().context("cannot start QEMU")?);
    let mut left = limit;
    loop {
        if let Some(status) = child.0.try_wait().context("waiting for QEMU")? {
            if !status.success() {
                bail!("QEMU failed ({status}); what it printed is above");
            }
            return Ok(());
        }
        let Some(next) = left.checked_sub(POLL) else {
            bail!(
                "the guest was not through after {} minutes and has been stopped: allow it more (--timeout) or run \
                 fewer tests (-- -E 'binary(differential)')",
                limit.as_secs() / 60
            );
        };
        left = next;
        thread::sleep(POLL);
    }
}

/// A process that does not outlive its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A folder of one run's own, which is removed with it.
pub struct Folder(PathBuf);

impl Folder {
    /// A new one in `place`, named after this process; those of processes that are gone are removed.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn unique(place: &Path) -> Result<Self> {
        for entry in fs::read_dir(place).into_iter().flatten().flatten() {
            let owner = entry.file_name().to_str().and_then(owner);
            if owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
                fs::remove_dir_all(entry.path())
                    .with_context(|| format!("removing {}", entry.path().display()))?;
            }
        }
        let path = place.join(format!("{PREFIX}{}", process::id()));
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("{} stays behind: {error}", self.0.display());
        }
    }
}

/// The process that a folder is named after.
fn owner(name: &str) -> Option<u32> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kvm_takes_a_processor_that_has_it_and_its_device() {
        let able = "model name\t: x\nflags\t\t: fpu svm lm\n";
        assert_eq!(Accelerator::of(able, true), Accelerator::Kvm);
        assert_eq!(Accelerator::of(able, false), Accelerator::Emulation);
        // The device alone is in every container.
        assert_eq!(
            Accelerator::of("flags\t\t: fpu lm\n", true),
            Accelerator::Emulation
        );
    }

    fn arguments(shared: &str) -> String {
        let machine = Machine {
            image: Path::new("/k/vmlinuz"),
            initramfs: Path::new("/k/initramfs"),
            shared: Path::new(shared),
            accelerator: Accelerator::Emulation,
        };
        machine.arguments().join(" ")
    }

    #[test]
    fn the_guest_cannot_write_to_this_machines_files_but_to_its_own_folder() {
        let line = arguments("/k/run-1");
        assert!(
            line.contains("id=root,path=/,security_model=none,readonly=on"),
            "{line}"
        );
        assert!(
            line.contains("id=shared,path=/k/run-1,security_model=none "),
            "{line}"
        );
    }

    #[test]
    fn a_comma_in_a_path_is_not_taken_for_its_end() {
        let line = arguments("/a,readonly=on");
        assert!(
            line.contains("path=/a,,readonly=on,security_model"),
            "{line}"
        );
    }

    #[test]
    fn a_guest_that_panics_ends_and_nothing_reaches_a_network() {
        let line = arguments("/k/run-1");
        assert!(
            line.contains("-no-reboot") && line.contains("panic=-1"),
            "{line}"
        );
        assert!(
            line.contains("-nodefaults") && !line.contains("-nic"),
            "{line}"
        );
    }

    #[test]
    fn only_folders_named_after_a_process_are_a_runs() {
        assert_eq!(owner("run-12"), Some(12));
        assert_eq!(owner("run-x"), None);
        assert_eq!(owner("kernels"), None);
    }

    #[test]
    fn a_runs_folder_goes_with_it_and_so_does_one_whose_process_is_gone() {
        let place = std::env::temp_dir().join(format!("xtask-vm-{}", process::id()));
        // Above what the kernel gives (PID_MAX_LIMIT).
        let stale = place.join(format!("{PREFIX}{}", u32::MAX));
        fs::create_dir_all(&stale).unwrap();
        let folder = Folder::unique(&place).unwrap();
        let own = folder.path().to_owned();
        assert!(own.is_dir() && !stale.exists());
        drop(folder);
        assert!(!own.exists());
        fs::remove_dir(place).unwrap();
    }
}
