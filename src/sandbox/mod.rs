//! The sandbox of an engine process: no network, no other programs, and no files but the model and the
//! system's libraries.
//!
//! Landlock (Linux 5.13 and later) bounds the files, a seccomp filter the system calls. A kernel without
//! one of them runs the engine with the other alone: which of them is active is logged and shown by
//! `doctor`.

pub mod memory;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope, path_beneath_rules,
};
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter_all_threads,
};

/// The newest version of Landlock whose rights are used; an older kernel enforces those that it knows.
const LANDLOCK: ABI = ABI::V6;
/// What an engine reads besides its model: libraries, and what they ask the kernel about the machine.
const SYSTEM: [&str; 15] = [
    "/usr",
    "/lib",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
    "/etc/ld.so.conf.d",
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/sys/vm",
    "/sys/devices/system",
    "/sys/fs/cgroup",
    "/dev/null",
    "/dev/urandom",
];
/// What the driver of a GPU needs besides: its devices, the kernel's view of them, and its libraries.
const GPU: [&str; 5] =
    ["/proc", "/sys", "/opt", "/etc/nv_tegra_release", "/run/nvidia-persistenced"];
const GPU_DEVICES: &str = "/dev";
/// System calls that no engine needs: networks, other programs, other processes, the kernel itself.
const DENIED: [libc::c_long; 44] = [
    libc::SYS_socket,
    libc::SYS_connect,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_kcmp,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    // it could open a socket
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
];

/// The files of one engine.
#[derive(Debug, Default)]
pub struct SandboxPaths {
    /// Files and folders that it reads.
    pub read: Vec<PathBuf>,
    /// Folders that it writes to.
    pub write: Vec<PathBuf>,
    /// Whether it computes on a GPU.
    pub gpu: bool,
}

/// Whether a part of the sandbox is active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SandboxLevel {
    /// All of it.
    Full,
    /// What this kernel supports of it.
    Partial,
    /// Nothing, for this reason.
    Off(String),
}

impl fmt::Display for SandboxLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SandboxLevel::Full => f.write_str("full"),
            SandboxLevel::Partial => f.write_str("partial (older kernel)"),
            SandboxLevel::Off(why) => write!(f, "off ({why})"),
        }
    }
}

/// The sandbox of this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Landlock: files and TCP ports.
    pub files: SandboxLevel,
    /// seccomp: system calls.
    pub calls: SandboxLevel,
}

/// Restricts the calling thread, and all threads that it starts later; system calls of all threads.
///
/// A restriction can't be taken back. It does not fail: a level says what is not active.
pub fn enter(paths: &SandboxPaths) -> Sandbox {
    let files = restrict_files(paths).unwrap_or_else(|e| SandboxLevel::Off(e.to_string()));
    let calls = restrict_calls(paths).map_or_else(SandboxLevel::Off, |()| SandboxLevel::Full);
    Sandbox { files, calls }
}

fn restrict_files(paths: &SandboxPaths) -> Result<SandboxLevel, RulesetError> {
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let all = AccessFs::from_all(LANDLOCK) & !AccessFs::Execute;
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?
        .add_rules(path_beneath_rules(SYSTEM, read))?
        .add_rules(path_beneath_rules(&paths.read, read))?
        .add_rules(path_beneath_rules(&paths.write, all))?;
    if paths.gpu {
        let devices = read | AccessFs::WriteFile | AccessFs::IoctlDev;
        rules = rules
            .add_rules(path_beneath_rules(GPU, read))?
            .add_rules(path_beneath_rules([GPU_DEVICES], devices))?;
    }
    Ok(match rules.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => SandboxLevel::Full,
        RulesetStatus::PartiallyEnforced => SandboxLevel::Partial,
        RulesetStatus::NotEnforced => SandboxLevel::Off("no Landlock in this kernel".to_owned()),
    })
}

fn restrict_calls(paths: &SandboxPaths) -> Result<(), String> {
    let filter = filter(paths.gpu).map_err(|e| e.to_string())?;
    apply_filter_all_threads(&filter).map_err(|e| e.to_string())
}

fn filter(gpu: bool) -> Result<BpfProgram, seccompiler::BackendError> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        DENIED.iter().map(|call| (*call, Vec::new())).collect();
    if gpu {
        // a driver looks for its daemons on sockets of this machine
        let unix = u64::from(libc::AF_UNIX.unsigned_abs());
        let other = SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, unix)?;
        rules.insert(libc::SYS_socket, vec![SeccompRule::new(vec![other])?]);
        rules.remove(&libc::SYS_connect);
    }
    let denied = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, denied, arch)?.try_into()
}

/// The symbolic links of a folder: download caches keep a model's files in another place.
pub fn links_of(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_symlink()).collect()
}

/// The folders of libraries outside of the system's own: of this program, and of the environment.
pub fn library_folders() -> Vec<PathBuf> {
    let program = std::env::current_exe().ok();
    let beside = program.as_deref().and_then(Path::parent).map(Path::to_owned);
    let listed = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let listed: Vec<PathBuf> = std::env::split_paths(&listed).collect();
    let runtime = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    let runtime = runtime.as_deref().and_then(Path::parent).map(Path::to_owned);
    let all = beside.into_iter().chain(listed).chain(runtime);
    all.filter(|path| path.as_os_str().len() > 1).collect()
}
