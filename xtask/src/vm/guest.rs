//! What the guest is told: the script that it starts with, the one that runs the tests, and the names by which it
//! and this machine find what they share. Pure.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::invocation::quoted;

/// Folders of what the kernel starts from.
pub const FOLDERS: [&str; 9] = [
    "bin",
    INITIAL_MODULES,
    "proc",
    "sys",
    "dev",
    "below",
    "above",
    "root",
    "tmp",
];
/// Where that has busybox.
pub const INITIAL_BUSYBOX: &str = "bin/busybox";
/// And its modules, in the order of their names.
pub const INITIAL_MODULES: &str = "modules";

/// 9p's name of this machine's files.
pub const ROOT_TAG: &str = "root";
/// And of the folder that both write to.
pub const SHARED_TAG: &str = "shared";
/// Where the guest has that.
const SHARED: &str = "/run/vm";

/// Files in there.
pub const SCRIPT: &str = "tests.sh";
/// A program that needs no libraries.
pub const BUSYBOX: &str = "busybox";
/// nextest's list of test binaries.
pub const BINARIES: &str = "binaries.json";
/// cargo's of packages.
pub const METADATA: &str = "metadata.json";
/// How nextest ended.
pub const STATUS: &str = "status";
/// Its report.
pub const JUNIT: &str = "junit.xml";
/// Which tests could not run, and why.
pub const SKIPS: &str = "skips.txt";

/// The kernel's first program: this machine's files below a layer of memory, and then [`SCRIPT`] with them.
pub const INIT: &str = "#!/bin/busybox sh
PATH=/bin
/bin/busybox --install -s /bin
stop() { echo \"vm: $1\"; poweroff -f; }
mount -t proc proc /proc && mount -t sysfs sysfs /sys && mount -t devtmpfs dev /dev || stop 'no proc, sysfs or devtmpfs'
for module in /modules/*; do
    [ ! -f $module ] || insmod $module || stop \"cannot load $module\"
done
options=trans=virtio,version=9p2000.L,msize=262144
mount -t 9p -o $options,cache=loose,ro root /below || stop 'cannot mount the root file system over 9p'
mount -t tmpfs tmpfs /above && mkdir /above/upper /above/work || stop 'no tmpfs'
mount -t overlay -o lowerdir=/below,upperdir=/above/upper,workdir=/above/work overlay /root || stop 'cannot lay memory over it'
for folder in proc sys dev; do mount --move /$folder /root/$folder; done
for folder in run tmp dev/shm dev/pts; do mkdir -p /root/$folder; done
mount -t tmpfs tmpfs /root/run && mount -t tmpfs tmpfs /root/tmp && mount -t tmpfs tmpfs /root/dev/shm || stop 'no tmpfs'
mount -t devpts devpts /root/dev/pts
mkdir /root/run/vm && mount -t 9p -o $options,cache=none shared /root/run/vm || stop 'cannot mount the shared folder over 9p'
exec switch_root /root /bin/sh /run/vm/tests.sh
";

/// Variables that tests read, and those that are set below.
const OWN: [&str; 2] = ["LB_SKIP_FILE", "LB_BIN_DIR"];
/// Where nextest reads how many tests run at a time.
const THREADS: &str = "NEXTEST_TEST_THREADS";
/// How many frames the differential test compares.
const FRAMES: &str = "LB_DIFFERENTIAL_PACKETS";

/// What holds unless the caller says otherwise: two processors that are emulated take their time, but the differential
/// test wants to have seen everything that frames can lead to, which with 20,000 it has not.
const UNLESS_SAID: [(&str, &str); 2] = [(THREADS, "2"), (FRAMES, "60000")];

/// What holds whatever the caller says. The guest's console is a terminal without a width, which a bar would be
/// drawn on line by line.
const ALWAYS: [(&str, &str); 2] = [
    ("CARGO_TERM_COLOR", "never"),
    ("NEXTEST_SHOW_PROGRESS", "none"),
];

/// Whether the guest gets a variable of the caller's.
pub fn is_passed_on(name: &str) -> bool {
    (name.starts_with("LB_") || name == THREADS) && !OWN.contains(&name)
}

/// What is to be tested, and where it is; on this machine, as in the guest.
pub struct Tests<'a> {
    /// The runner.
    pub nextest: PathBuf,
    /// The checkout.
    pub root: &'a Path,
    /// The programs under test.
    pub programs: PathBuf,
    /// The kernel's modules.
    pub modules: Option<&'a Path>,
    /// Which tests, where nothing is said of that.
    pub profile: &'a str,
    /// What is said.
    pub passed_on: &'a [String],
    /// Of the caller's environment.
    pub variables: Vec<(String, String)>,
}

impl Tests<'_> {
    /// [`SCRIPT`]: what is left to prepare, the tests, and the end.
    pub fn script(&self) -> String {
        let word = |path: &Path| quoted(&path.display().to_string());
        let mut script = format!(
            "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root\n\
             ln -s {SHARED}/{BUSYBOX} /run/modprobe\n\
             echo /run/modprobe > /proc/sys/kernel/modprobe\n"
        );
        if let Some(modules) = self.modules {
            let _ = writeln!(
                script,
                "mkdir -p /lib/modules && mount --bind {} /lib/modules",
                word(modules)
            );
        }
        script += "mount -t bpf bpf /sys/fs/bpf\nip link set lo up\n";
        let _ = writeln!(script, "cd {}", word(self.root));
        for (name, value) in self.environment() {
            let _ = writeln!(script, "export {name}={}", quoted(&value));
        }
        let _ = writeln!(
            script,
            "{}\necho $? > {SHARED}/{STATUS}\ncp target/nextest/{}/{JUNIT} {SHARED}/\nsync\n{SHARED}/{BUSYBOX} poweroff -f",
            self.command(),
            self.profile,
        );
        script
    }

    fn environment(&self) -> Vec<(String, String)> {
        let pair = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        let said = |name: &str| self.variables.iter().any(|(given, _)| given == name);
        let own = [
            ("LB_SKIP_FILE", format!("{SHARED}/{SKIPS}")),
            ("LB_BIN_DIR", self.programs.display().to_string()),
        ];
        let unless_said = UNLESS_SAID.into_iter().filter(|(name, _)| !said(name));
        unless_said
            .map(pair)
            .chain(self.variables.iter().cloned())
            .chain(ALWAYS.map(pair))
            .chain(own.map(|(name, value)| (name.to_owned(), value)))
            .collect()
    }

    fn command(&self) -> String {
        let mut words = vec![
            self.nextest.display().to_string(),
            "nextest".to_owned(),
            "run".to_owned(),
            format!("--profile={}", self.profile),
            format!("--binaries-metadata={SHARED}/{BINARIES}"),
            format!("--cargo-metadata={SHARED}/{METADATA}"),
        ];
        if !self.passed_on.is_empty() {
            // Who says what to run means that, not what is left of it in the profile.
            words.push("--ignore-default-filter".to_owned());
        }
        words.extend(self.passed_on.iter().cloned());
        let words: Vec<String> = words.iter().map(|word| quoted(word)).collect();
        words.join(" ")
    }
}

/// nextest's exit status, as the guest wrote it.
pub fn parse_status(text: &str) -> Option<u8> {
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn script(passed_on: &[&str], variables: &[(&str, &str)]) -> String {
        let passed_on: Vec<String> = passed_on.iter().map(|word| (*word).to_owned()).collect();
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Tests {
            nextest: "/t/cargo-nextest".into(),
            root: Path::new("/check out"),
            programs: "/check out/target/release".into(),
            modules: Some(Path::new("/m")),
            profile: "vm",
            passed_on: &passed_on,
            variables: variables.collect(),
        }
        .script()
    }

    #[test]
    fn without_a_filter_the_profile_says_what_is_run() {
        let script = script(&[], &[]);
        assert!(script.contains(" --profile=vm "), "{script}");
        assert!(!script.contains("--ignore-default-filter"), "{script}");
    }

    #[test]
    fn a_filter_stands_in_for_the_profiles_and_is_quoted() {
        let script = script(&["-E", "binary(udp)"], &[]);
        assert!(
            script.contains("--ignore-default-filter -E 'binary(udp)'\n"),
            "{script}"
        );
    }

    #[test]
    fn folders_with_spaces_stay_one_word() {
        let script = script(&[], &[]);
        assert!(script.contains("cd '/check out'\n"), "{script}");
        assert!(
            script.contains("LB_BIN_DIR='/check out/target/release'\n"),
            "{script}"
        );
    }

    #[test]
    fn what_the_caller_says_of_frames_wins() {
        assert!(script(&[], &[]).contains("export LB_DIFFERENTIAL_PACKETS=60000\n"));
        let said = script(&[], &[(FRAMES, "7")]);
        assert!(
            said.contains("export LB_DIFFERENTIAL_PACKETS=7\n"),
            "{said}"
        );
        assert!(!said.contains("=60000"), "{said}");
    }

    #[test]
    fn a_console_without_a_width_gets_no_bar() {
        let script = script(&[], &[]);
        assert!(
            script.contains("export NEXTEST_SHOW_PROGRESS=none\n"),
            "{script}"
        );
    }

    #[test]
    fn variables_of_tests_are_passed_on_but_not_this_machines_files() {
        assert!(is_passed_on("LB_DIFFERENTIAL_SEED") && is_passed_on(THREADS));
        assert!(!is_passed_on("LB_SKIP_FILE") && !is_passed_on("HOME"));
    }

    #[test]
    fn a_status_is_read_only_where_one_was_written() {
        assert_eq!(parse_status("0\n"), Some(0));
        assert_eq!(parse_status("100\n"), Some(100));
        assert_eq!(parse_status(""), None);
    }

    #[test]
    fn both_ends_agree_on_the_names_of_what_they_share() {
        for name in [ROOT_TAG, SHARED_TAG] {
            assert!(INIT.contains(&format!(" {name} /")), "{name}");
        }
        assert!(INIT.contains(&format!("{SHARED}/{SCRIPT}")));
    }
}
