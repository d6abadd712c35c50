//! Limits of replicas by control groups, version 1 or 2, wherever this process may make them.
//!
//! It knows files and numbers, and nothing of what runs in a group. Where groups cannot be made it says why, once, in words.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use proto::spec::Resources;

/// The controllers that limits need.
const CONTROLLERS: [&str; 3] = ["memory", "cpu", "pids"];
/// The period over which a CPU quota counts, in microseconds; the kernel's default.
const PERIOD: u64 = 100_000;
const GIB: f64 = 1_073_741_824.0;

/// How replicas are limited on this machine.
#[derive(Debug, Clone)]
pub(super) enum Limits {
    /// One folder for each controller (version 1).
    Separate(BTreeMap<&'static str, PathBuf>),
    /// One folder for all (version 2).
    Unified(PathBuf),
    /// Not at all, and why.
    None(String),
}

/// The control group of one replica. Dropping it changes nothing: it is adopted again by its name.
#[derive(Debug, Clone)]
pub(super) struct Group {
    folders: BTreeMap<&'static str, PathBuf>,
    unified: bool,
}

impl Limits {
    /// Finds out how limits can be set here; `name` keeps the groups of several deployers of one machine apart.
    pub(super) fn find(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let separate = separate(&mounts, &own);
        let found = if CONTROLLERS.iter().all(|controller| separate.contains_key(controller)) {
            Self::Separate(separate.into_iter().map(|(controller, own)| (controller, own.join(name))).collect())
        } else if let Some(own) = unified(&mounts, &own) {
            // A group with processes of its own cannot hand controllers on, so the parent is tried first.
            let places = own.parent().map(Path::to_owned).into_iter().chain([own.clone()]);
            let places = places.filter(|place| place.join("cgroup.procs").exists()).map(|place| place.join(name));
            let found = places.map(Self::Unified).find(|limits| limits.ensure().is_ok());
            let controllers = CONTROLLERS.join(", ");
            found.unwrap_or_else(|| {
                Self::None(format!("no control group with {controllers} may be made below {}", own.display()))
            })
        } else {
            Self::None("this machine has no control groups".to_owned())
        };
        match found.ensure() {
            Ok(()) => {
                // It is made again for the first replica; a deployer without replicas leaves no trace.
                found.remove();
                found
            }
            Err(error) => Self::None(format!("control groups cannot be made: {error}")),
        }
    }

    /// Makes the folder of all groups.
    fn ensure(&self) -> io::Result<()> {
        match self {
            Self::Separate(folders) => folders.values().try_for_each(|folder| make(folder)),
            Self::Unified(folder) => delegate(folder),
            Self::None(_) => Ok(()),
        }
    }

    /// Makes the group of a replica with its limits; `None` where there are no groups.
    pub(super) fn group(&self, name: &str, resources: &Resources, pids: u64) -> io::Result<Option<Group>> {
        let Some(group) = self.named(name) else { return Ok(None) };
        let make_all = || {
            self.ensure()?;
            group.folders.values().try_for_each(|folder| make(folder))
        };
        // The folder of all goes with the last group in it, which may be at this very moment.
        make_all().or_else(|_| make_all())?;
        for (controller, file, value) in settings(group.unified, resources, pids) {
            fs::write(group.folders[controller].join(file), &value)
                .map_err(|error| io::Error::new(error.kind(), format!("{file} = {value}: {error}")))?;
        }
        if group.unified && resources.memory_gb_limit.is_some() {
            // Memory that is swapped out would not be limited; a kernel without swap has no such file.
            let _ = fs::write(group.folders["memory"].join("memory.swap.max"), "0");
        }
        Ok(Some(group))
    }

    /// The group of a replica, whether it is there or not.
    pub(super) fn named(&self, name: &str) -> Option<Group> {
        let folders = match self {
            Self::Separate(folders) => {
                folders.iter().map(|(controller, folder)| (*controller, folder.join(name))).collect()
            }
            Self::Unified(folder) => CONTROLLERS.map(|controller| (controller, folder.join(name))).into(),
            Self::None(_) => return None,
        };
        Some(Group { folders, unified: matches!(self, Self::Unified(_)) })
    }

    /// The names of all groups that are there.
    pub(super) fn names(&self) -> Vec<String> {
        let folder = match self {
            Self::Separate(folders) => folders.get("memory"),
            Self::Unified(folder) => Some(folder),
            Self::None(_) => None,
        };
        let entries = folder.and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        folders.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }

    /// Takes away the folder of all groups if it is empty: for a deployer that leaves nothing behind.
    pub(super) fn remove(&self) {
        let folders: Vec<&PathBuf> = match self {
            Self::Separate(folders) => folders.values().collect(),
            Self::Unified(folder) => vec![folder],
            Self::None(_) => Vec::new(),
        };
        for folder in folders {
            // One that is not empty belongs to replicas that go on.
            let _ = fs::remove_dir(folder);
        }
    }

    /// Why limits cannot be set, in words; `None` when they can.
    pub(super) fn missing(&self) -> Option<&str> {
        match self {
            Self::None(why) => Some(why),
            _ => None,
        }
    }
}

impl Group {
    /// Puts a process into the group; what it starts from then on is in it too.
    pub(super) fn add(&self, pid: u32) -> io::Result<()> {
        let folders: std::collections::BTreeSet<_> = self.folders.values().collect();
        folders.into_iter().try_for_each(|folder| fs::write(folder.join("cgroup.procs"), pid.to_string()))
    }

    /// How many processes of the group were killed because it had no memory left.
    pub(super) fn out_of_memory_kills(&self) -> u64 {
        let file = if self.unified { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.folders["memory"].join(file)).unwrap_or_default();
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
    }

    /// The processes in the group.
    pub(super) fn processes(&self) -> Vec<i32> {
        let text = fs::read_to_string(self.folders["pids"].join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Kills all that is in the group and takes the group away. Blocks, for a moment.
    pub(super) fn end(&self) {
        for _ in 0..200 {
            for pid in self.processes() {
                super::table::signal(pid, rustix::process::Signal::KILL);
            }
            let folders = self.folders.values();
            let left = folders.filter(|folder| fs::remove_dir(folder).is_err() && folder.exists()).count();
            if left == 0 {
                for folder in self.folders.values().filter_map(|folder| folder.parent()) {
                    // One that is not empty belongs to replicas that go on.
                    let _ = fs::remove_dir(folder);
                }
                return;
            }
            // A killed process leaves its group a moment later.
            std::thread::sleep(Duration::from_millis(5));
        }
        tracing::warn!(group = ?self.folders, "a control group could not be taken away");
    }
}

/// Which value belongs into which file.
fn settings(unified: bool, resources: &Resources, pids: u64) -> Vec<(&'static str, &'static str, String)> {
    // What Docker and Kubernetes make of CPU requests: 1024 shares a core.
    let shares = (resources.cpu * 1024.0).clamp(2.0, 262_144.0) as u64;
    let weight = 1 + ((shares - 2) * 9999) / 262_142;
    let memory = resources.memory_gb_limit.map(|limit| ((limit * GIB) as u64).to_string());
    // The kernel takes no quota below a millisecond.
    let quota = resources.cpu_limit.map(|limit| ((limit * PERIOD as f64) as u64).max(1000).to_string());
    let mut settings = vec![("pids", "pids.max", pids.to_string())];
    if unified {
        settings.push(("cpu", "cpu.weight", weight.to_string()));
        settings.extend(quota.map(|quota| ("cpu", "cpu.max", format!("{quota} {PERIOD}"))));
        settings.extend(memory.map(|memory| ("memory", "memory.max", memory)));
    } else {
        settings.push(("cpu", "cpu.shares", shares.to_string()));
        settings.extend(quota.map(|quota| ("cpu", "cpu.cfs_quota_us", quota)));
        settings.extend(memory.map(|memory| ("memory", "memory.limit_in_bytes", memory)));
    }
    settings
}

/// Makes a group of version 2 that hands the controllers on to its children.
fn delegate(folder: &Path) -> io::Result<()> {
    make(folder)?;
    let there = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
    let complete = CONTROLLERS.iter().all(|wanted| there.split_whitespace().any(|controller| controller == *wanted));
    let on = CONTROLLERS.map(|controller| format!("+{controller}")).join(" ");
    let done = if complete {
        fs::write(folder.join("cgroup.subtree_control"), on)
    } else {
        Err(io::Error::new(io::ErrorKind::PermissionDenied, "not all controllers are handed on to it"))
    };
    // A group that cannot be used is not left behind; if it cannot be taken away either, it is empty and harmless.
    done.inspect_err(|_| drop(fs::remove_dir(folder)))
}

fn make(folder: &Path) -> io::Result<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(io::Error::new(error.kind(), format!("{}: {error}", folder.display())))
        }
        _ => Ok(()),
    }
}

/// The folders of this process's own groups (version 1), by controller.
fn separate(mounts: &str, own: &str) -> BTreeMap<&'static str, PathBuf> {
    let mut folders = BTreeMap::new();
    for mount in mounts.lines().filter_map(Mount::parse).filter(|mount| mount.kind == "cgroup") {
        for controller in CONTROLLERS {
            if mount.options.split(',').any(|option| option == controller)
                && let Some(path) = own.lines().find_map(|line| {
                    let (_, rest) = line.split_once(':')?;
                    let (names, path) = rest.split_once(':')?;
                    names.split(',').any(|name| name == controller).then_some(path)
                })
            {
                folders.insert(controller, mount.locate(path));
            }
        }
    }
    folders
}

/// The folder of this process's own group (version 2).
fn unified(mounts: &str, own: &str) -> Option<PathBuf> {
    let mount = mounts.lines().filter_map(Mount::parse).find(|mount| mount.kind == "cgroup2")?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(mount.locate(path))
}

struct Mount<'a> {
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl<'a> Mount<'a> {
    /// Reads a line of `/proc/self/mountinfo`.
    fn parse(line: &'a str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let before: Vec<_> = before.split(' ').collect();
        let after: Vec<_> = after.split(' ').collect();
        Some(Self { root: before.get(3)?, point: before.get(4)?, kind: after.first()?, options: after.get(2)? })
    }

    /// Where a group's path of `/proc/self/cgroup` is found below the mount.
    fn locate(&self, path: &str) -> PathBuf {
        let inside = Path::new(path).strip_prefix(self.root).unwrap_or(Path::new(path));
        Path::new(self.point).join(inside.strip_prefix("/").unwrap_or(inside))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(limited: bool) -> Resources {
        Resources {
            cpu: 0.5,
            cpu_limit: limited.then_some(1.5),
            memory_gb: 0.5,
            memory_gb_limit: limited.then_some(0.25),
            gpu: 0,
        }
    }

    #[test]
    fn limits_are_written_in_the_words_of_each_version() {
        assert_eq!(
            settings(true, &resources(true), 100),
            [
                ("pids", "pids.max", "100".to_owned()),
                ("cpu", "cpu.weight", "20".to_owned()),
                ("cpu", "cpu.max", "150000 100000".to_owned()),
                ("memory", "memory.max", "268435456".to_owned()),
            ]
        );
        assert_eq!(
            settings(false, &resources(true), 100),
            [
                ("pids", "pids.max", "100".to_owned()),
                ("cpu", "cpu.shares", "512".to_owned()),
                ("cpu", "cpu.cfs_quota_us", "150000".to_owned()),
                ("memory", "memory.limit_in_bytes", "268435456".to_owned()),
            ]
        );
        assert_eq!(settings(true, &resources(false), 100).len(), 2, "no limit but the number of processes");
    }

    #[test]
    fn the_own_groups_are_found_in_both_versions() {
        let mounts = "32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
                      35 31 0:32 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let own = "4:memory:/docker/x/y\n3:cpu,cpuacct:/user\n2:pids:/\n0::/user.slice/a.scope\n";
        let found = separate(mounts, own);
        assert_eq!(found["cpu"], Path::new("/sys/fs/cgroup/cpu,cpuacct/user"));
        assert_eq!(found["memory"], Path::new("/sys/fs/cgroup/memory/y"));
        assert_eq!(found["pids"], Path::new("/sys/fs/cgroup/pids"));
        assert_eq!(unified(mounts, own).unwrap(), Path::new("/sys/fs/cgroup/unified/user.slice/a.scope"));
        assert!(separate("", own).is_empty() && unified(mounts, "").is_none());
    }

    #[test]
    fn a_group_of_version_2_is_used_only_with_all_its_controllers() {
        // Plain files in place of the kernel's: what is written where can be seen, what it does cannot.
        let folder = tempfile::tempdir().unwrap();
        let kaai = folder.path().join("kaai");
        assert!(delegate(&kaai).is_err() && !kaai.exists());
        fs::create_dir_all(&kaai).unwrap();
        fs::write(kaai.join("cgroup.controllers"), "cpuset cpu io memory pids").unwrap();
        delegate(&kaai).unwrap();
        assert_eq!(fs::read_to_string(kaai.join("cgroup.subtree_control")).unwrap(), "+memory +cpu +pids");

        let limits = Limits::Unified(kaai.clone());
        let group = limits.group("r1", &resources(true), 64).unwrap().unwrap();
        group.add(42).unwrap();
        assert_eq!(fs::read_to_string(kaai.join("r1/memory.max")).unwrap(), "268435456");
        assert_eq!(fs::read_to_string(kaai.join("r1/memory.swap.max")).unwrap(), "0");
        assert_eq!(group.processes(), [42]);
        fs::write(kaai.join("r1/memory.events"), "low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\n").unwrap();
        assert_eq!(group.out_of_memory_kills(), 1);
        assert_eq!(limits.names(), ["r1"]);
    }

    #[test]
    fn this_machines_groups_hold_a_process_and_let_it_go() {
        let limits = Limits::find(&format!("kaai-test-{}", std::process::id()));
        if let Some(why) = limits.missing() {
            runtime::testing::skip("this_machines_groups_hold_a_process_and_let_it_go", why);
            return;
        }
        assert!(!folders(&limits).any(|folder| folder.exists()), "nothing is there before the first replica");
        let group = limits.group("r1", &resources(true), 64).unwrap().unwrap();
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        group.add(child.id()).unwrap();
        assert_eq!(group.processes(), [i32::try_from(child.id()).unwrap()]);
        assert_eq!(group.out_of_memory_kills(), 0);
        // Waited for by another thread: a zombie holds its group.
        let waiting = std::thread::spawn(move || child.wait().unwrap());
        group.end();
        assert!(!waiting.join().unwrap().success());
        assert!(!folders(&limits).any(|folder| folder.exists()), "nor after the last");
    }

    fn folders(limits: &Limits) -> impl Iterator<Item = PathBuf> {
        let group = limits.named("r1").unwrap();
        group.folders.into_values().filter_map(|folder| folder.parent().map(Path::to_owned))
    }
}
