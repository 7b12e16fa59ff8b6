//! Fetches Debian's packages without installing them: by an apt configuration of this checkout's own, with its own
//! lists, so that neither the system's sources nor its packages are touched. Keeps what it has unpacked.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::kernel::{self, Kernel, PACKAGE, Wanted};
use crate::outcome::succeed;

/// Modules that no test needs, and most of a kernel's size.
const LEFT_OUT: [&str; 10] = [
    "sound",
    "drivers/gpu",
    "drivers/media",
    "drivers/usb",
    "drivers/scsi",
    "drivers/infiniband",
    "drivers/staging",
    "drivers/iio",
    "drivers/net/ethernet",
    "drivers/net/wireless",
];

/// The kernel that is wanted, unpacked below `place`.
///
/// # Errors
/// There is none, or it cannot be fetched or unpacked.
pub fn obtain(place: &Path, wanted: &Wanted) -> Result<Kernel> {
    let kernels = place.join("kernels");
    match wanted {
        Wanted::Version(version) => {
            if let Some(release) = unpacked(&kernels, version) {
                eprintln!("vm: {release} is in {} already", kernels.display());
                return Ok(kept(&kernels, &release));
            }
            let apt = Apt::new(place, kernel::suite(version))?;
            let names = apt.names(PACKAGE)?;
            let release = kernel::newest(&names, version).with_context(|| {
                format!(
                    "Debian ({}) has no kernel {version} for amd64; what there is: {}",
                    apt.suite,
                    releases(&names).join(", ")
                )
            })?;
            let package = apt.download(&format!("{PACKAGE}{release}"))?;
            unpack(place, &package)
        }
        Wanted::Package(package) => unpack(place, package),
        Wanted::Image(image) => {
            let bytes = fs::read(image).with_context(|| image.display().to_string())?;
            let release = kernel::release_of(&bytes)
                .with_context(|| format!("{} cannot be booted", image.display()))?;
            let modules = image.parent().map(|folder| folder.join("../lib/modules"));
            let modules = modules.filter(|modules| modules.join(&release).is_dir());
            take(place, image, &release, modules.as_deref())
        }
    }
}

/// A busybox that needs no libraries.
///
/// # Errors
/// It cannot be fetched or unpacked.
pub fn busybox(place: &Path) -> Result<PathBuf> {
    let path = place.join("busybox");
    if !path.exists() {
        let apt = Apt::new(place, kernel::suite(kernel::DEFAULT))?;
        let package = apt.download("busybox-static")?;
        let unpacked = Unpacked::new(place, &package)?;
        let found = ["bin", "usr/bin"].map(|folder| unpacked.0.join(folder).join("busybox"));
        let found = found.iter().find(|path| path.exists());
        fs::rename(found.context("the package busybox-static has none")?, &path)
            .context("keeping busybox")?;
    }
    Ok(path)
}

/// The releases in a list of packages' names, for people.
fn releases(names: &str) -> Vec<&str> {
    let all = names.lines().filter_map(|name| name.strip_prefix(PACKAGE));
    all.filter(|release| release.ends_with("-amd64") && release.starts_with(char::is_numeric))
        .collect()
}

/// The newest of a version that was unpacked before.
fn unpacked(kernels: &Path, version: &str) -> Option<String> {
    let names = fs::read_dir(kernels).into_iter().flatten().flatten();
    let names: Vec<String> = names
        .filter_map(|entry| Some(format!("{PACKAGE}{}", entry.file_name().to_str()?)))
        .collect();
    kernel::newest(&names.join("\n"), version).map(str::to_owned)
}

/// A kernel that was unpacked whole.
fn kept(kernels: &Path, release: &str) -> Kernel {
    let folder = kernels.join(release);
    let modules = folder.join("modules");
    Kernel {
        image: folder.join("vmlinuz"),
        release: release.to_owned(),
        modules: modules.is_dir().then_some(modules),
    }
}

/// Takes image and modules out of a package.
fn unpack(place: &Path, package: &Path) -> Result<Kernel> {
    let unpacked = Unpacked::new(place, package)?;
    let boot = unpacked.0.join("boot");
    let names = fs::read_dir(&boot).with_context(|| boot.display().to_string())?;
    let mut names = names
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    let image = names.find(|name| name.starts_with("vmlinuz-"));
    let image = image.with_context(|| format!("{} has no kernel", package.display()))?;
    let release = image.trim_start_matches("vmlinuz-").to_owned();
    let modules = ["lib/modules", "usr/lib/modules"].map(|folder| unpacked.0.join(folder));
    let modules = modules.iter().find(|modules| modules.is_dir());
    take(
        place,
        &boot.join(image),
        &release,
        modules.map(PathBuf::as_path),
    )
}

/// Copies a kernel to where it is kept, with its modules as busybox can load them. It is there under its name
/// only when it is whole.
fn take(place: &Path, image: &Path, release: &str, modules: Option<&Path>) -> Result<Kernel> {
    let kernels = place.join("kernels");
    let (whole, partial) = (kernels.join(release), place.join("partial"));
    clear(&partial)?;
    fs::create_dir_all(&kernels).with_context(|| kernels.display().to_string())?;
    fs::create_dir_all(&partial).with_context(|| partial.display().to_string())?;
    fs::copy(image, partial.join("vmlinuz")).with_context(|| image.display().to_string())?;
    if let Some(modules) = modules {
        let target = partial.join("modules").join(release);
        copy_modules(&modules.join(release), &target)?;
        let busybox = busybox(place)?;
        expand(&busybox, &target)?;
        // It writes below lib/modules of a root.
        fs::create_dir_all(partial.join("lib"))?;
        std::os::unix::fs::symlink("../modules", partial.join("lib/modules"))?;
        let mut depmod = Command::new(&busybox);
        depmod.arg("depmod").arg("-b").arg(&partial).arg(release);
        succeed(&mut depmod, "depmod")?;
    }
    clear(&whole)?;
    fs::rename(&partial, &whole).with_context(|| whole.display().to_string())?;
    Ok(kept(&kernels, release))
}

fn copy_modules(source: &Path, target: &Path) -> Result<()> {
    fs::create_dir_all(target).with_context(|| target.display().to_string())?;
    let mut copy = Command::new("cp");
    // A distribution's folder has links to sources besides.
    copy.args(["-a", "--target-directory"]).arg(target);
    for name in ["kernel", "modules.builtin", "modules.order"] {
        let path = source.join(name);
        ensure!(path.exists(), "{} is not there", path.display());
        copy.arg(path);
    }
    succeed(&mut copy, "copying the modules")?;
    for folder in LEFT_OUT {
        clear(&target.join("kernel").join(folder))?;
    }
    Ok(())
}

/// Decompresses modules that are not plain files, since busybox reads no other.
fn expand(busybox: &Path, modules: &Path) -> Result<()> {
    for (ending, applet) in [("xz", "unxz"), ("gz", "gunzip")] {
        let mut find = Command::new("find");
        find.arg(modules)
            .args(["-name", &format!("*.ko.{ending}"), "-exec"]);
        find.arg(busybox).args([applet, "{}", "+"]);
        succeed(&mut find, "decompressing the modules")?;
    }
    Ok(())
}

/// Removes a folder, if it is there.
fn clear(folder: &Path) -> Result<()> {
    if folder.exists() {
        fs::remove_dir_all(folder).with_context(|| format!("removing {}", folder.display()))?;
    }
    Ok(())
}

/// What a package holds, for as long as this lives.
struct Unpacked(PathBuf);

impl Unpacked {
    fn new(place: &Path, package: &Path) -> Result<Self> {
        let folder = place.join("unpacked");
        clear(&folder)?;
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(package).arg(&folder);
        let unpacked = Self(folder);
        succeed(&mut unpack, "unpacking")?;
        Ok(unpacked)
    }
}

impl Drop for Unpacked {
    fn drop(&mut self) {
        // The next one clears it too.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// apt with sources, lists and a state of its own.
struct Apt {
    folder: PathBuf,
    suite: &'static str,
}

impl Apt {
    /// Fetches the lists of a release.
    fn new(place: &Path, suite: &'static str) -> Result<Self> {
        let folder = place.join("apt").join(suite);
        for part in ["lists/partial", "cache/archives/partial"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).with_context(|| part.display().to_string())?;
        }
        for (name, text) in [
            ("sources.list", kernel::sources(suite)),
            ("status", String::new()),
            ("apt.conf", configuration(&folder)),
        ] {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| path.display().to_string())?;
        }
        let apt = Self { folder, suite };
        eprintln!("vm: reading what Debian's {suite} has");
        let mut update = apt.command("apt-get");
        update.args(["-qq", "update"]);
        succeed(&mut update, "apt-get update").with_context(|| {
            format!(
                "the package lists of {suite} cannot be had; where a kernel and busybox-static are at hand, name it by \
                 --kernel PATH"
            )
        })?;
        Ok(apt)
    }

    /// The names of packages that begin so.
    fn names(&self, start: &str) -> Result<String> {
        let mut list = self.command("apt-cache");
        let output = list
            .args(["pkgnames", start])
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start apt-cache")?;
        ensure!(
            output.status.success(),
            "apt-cache failed ({})",
            output.status
        );
        String::from_utf8(output.stdout).context("apt-cache prints no text")
    }

    /// Fetches a package, and removes any that was there before.
    fn download(&self, name: &str) -> Result<PathBuf> {
        eprintln!("vm: fetching {name} of {}", self.suite);
        let target = self.folder.join("download");
        clear(&target)?;
        fs::create_dir_all(&target).with_context(|| target.display().to_string())?;
        let mut download = self.command("apt-get");
        download
            .args(["-qq", "download", name])
            .current_dir(&target);
        succeed(&mut download, "apt-get download")?;
        let files = fs::read_dir(&target).with_context(|| target.display().to_string())?;
        let mut files = files.flatten().map(|entry| entry.path());
        match (files.next(), files.next()) {
            (Some(file), None) => Ok(file),
            _ => bail!("apt-get download {name} has left no package, or several"),
        }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .arg("--config-file")
            .arg(self.folder.join("apt.conf"));
        command.stdin(Stdio::null());
        command
    }
}

/// Everything that apt reads and writes below `folder`, but for how to reach the network.
fn configuration(folder: &Path) -> String {
    let settings = [
        ("Dir::Etc::SourceList", "sources.list"),
        ("Dir::State", ""),
        ("Dir::State::Lists", "lists"),
        ("Dir::State::Status", "status"),
        ("Dir::Cache", "cache"),
    ];
    let own = settings.map(|(name, file)| format!("{name} \"{}\";\n", folder.join(file).display()));
    let fixed = "Dir::Etc::SourceParts \"/dev/null\";\nAPT::Architecture \"amd64\";\nAPT::Sandbox::User \"root\";\n\
                 Acquire::Languages \"none\";\n";
    own.concat() + fixed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn apt_reads_and_writes_only_in_its_own_folder() {
        let text = configuration(Path::new("/p/target/vm/apt/bookworm"));
        for setting in ["SourceList", "State::Lists", "State::Status", "Cache"] {
            let line = text
                .lines()
                .find(|line| line.contains(&format!("::{setting} ")));
            let line = line.unwrap();
            assert!(line.contains("\"/p/target/vm/apt/bookworm/"), "{line}");
        }
        assert!(text.contains("SourceParts \"/dev/null\""), "{text}");
    }

    #[test]
    fn kernels_for_amd64_are_offered_without_what_only_names_them() {
        let names =
            "linux-image-amd64\nlinux-image-6.1.0-50-amd64\nlinux-image-6.1.0-50-amd64-dbg\n";
        assert_eq!(releases(names), ["6.1.0-50-amd64"]);
    }

    #[test]
    fn of_unpacked_kernels_the_newest_of_the_version_is_taken() {
        let kernels = std::env::temp_dir().join(format!("xtask-kernels-{}", std::process::id()));
        for release in ["6.1.0-9-amd64", "6.1.0-50-amd64", "6.12.1+deb13-amd64"] {
            fs::create_dir_all(kernels.join(release)).unwrap();
        }
        assert_eq!(unpacked(&kernels, "6.1").as_deref(), Some("6.1.0-50-amd64"));
        assert_eq!(unpacked(&kernels, "5.10"), None);
        fs::remove_dir_all(kernels).unwrap();
    }
}
