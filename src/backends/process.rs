//! The process of a model server: a child of this one, or an engine that the service manager starts for a
//! connection to a socket, in a unit of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::catalog::server::{ENGINES, EngineStart};
use crate::limits::engine::{ENGINE_ORDER_BYTES_MAX, UNIT_START_MAX, UNIT_WATCH_INTERVAL};
use crate::model::generate::Fault;

/// Environment variables that are the service's alone, and that no child process inherits: its secrets or
/// their paths, its connection to the service manager, and the socket of engines.
const PRIVATE: [&str; 7] = [
    "PILOTLIGHT_MQTT_PASSWORD",
    "PILOTLIGHT_HTTP_TOKEN",
    ENGINES,
    "CREDENTIALS_DIRECTORY",
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
];

/// The variable of the log filter.
pub(crate) const LOG: &str = "PILOTLIGHT_LOG";

/// The first line at the socket of engines: what the engine is to be started with.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EngineOrder {
    /// Arguments of the program, the first is `engine`.
    pub(crate) args: Vec<String>,
    /// Variables of its environment.
    pub(crate) env: BTreeMap<String, String>,
    /// Its working directory: relative paths are those of the service.
    pub(crate) directory: PathBuf,
}

/// The answer to an [`EngineOrder`], before the process becomes the engine.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EngineGreeting {
    /// Id of the process. It stays that of the engine.
    pub(crate) pid: i32,
}

/// A process that serves a model; it is ended when this is dropped.
#[derive(Debug)]
pub(super) enum ServerProcess {
    /// A child of this process.
    Child(Child),
    /// A process of the service manager.
    Unit(UnitProcess),
}

/// A process that is no child of this one.
#[derive(Debug)]
pub(super) struct UnitProcess {
    /// Is readable when the process has ended.
    process: OwnedFd,
}

/// The output of a server, which this process reads, and its input.
pub(super) struct Pipes {
    /// Ends with the server.
    pub(super) output: Box<dyn AsyncRead + Send + Unpin>,
    /// Asks the server to end when it is closed.
    pub(super) input: Box<dyn AsyncWrite + Send + Unpin>,
}

impl ServerProcess {
    /// Ends with a child. The end of another process is seen as that of its connection, and not here.
    pub(super) async fn ended(&mut self) -> Option<ExitStatus> {
        match self {
            ServerProcess::Child(child) => child.wait().await.ok(),
            ServerProcess::Unit(_) => std::future::pending().await,
        }
    }

    /// Waits for the end of a process that is ending; its status is known of a child.
    pub(super) async fn wait(&mut self) -> Option<ExitStatus> {
        match self {
            ServerProcess::Child(child) => child.wait().await.ok(),
            ServerProcess::Unit(unit) => {
                unit.ended().await;
                None
            }
        }
    }

    /// Ends the process and waits for its end.
    pub(super) async fn kill(&mut self) {
        match self {
            ServerProcess::Child(child) => {
                let _ = child.kill().await;
            }
            ServerProcess::Unit(unit) => {
                unit.signal_end();
                unit.ended().await;
            }
        }
    }
}

impl UnitProcess {
    /// Waits for the end of the process.
    async fn ended(&self) {
        // bounded: a process that is killed ends
        loop {
            let mut process = [PollFd::new(&self.process, PollFlags::IN)];
            if !matches!(poll(&mut process, Some(&Timespec::default())), Ok(0)) {
                return;
            }
            sleep(UNIT_WATCH_INTERVAL).await;
        }
    }

    fn signal_end(&self) {
        // fails if it has ended
        let _ = pidfd_send_signal(&self.process, Signal::KILL);
    }
}

impl Drop for UnitProcess {
    fn drop(&mut self) {
        self.signal_end();
    }
}

/// Whether a command starts the program that runs.
pub(super) fn is_this_program(command: &str) -> bool {
    command == "pilotlight" || std::env::current_exe().is_ok_and(|own| own == Path::new(command))
}

/// Starts a server as a child.
///
/// # Errors
/// If the program can't be started.
pub(super) fn spawn(
    command: &str,
    args: &[String],
    env: &BTreeMap<String, String>,
    hidden: &BTreeSet<String>,
    start: &EngineStart,
) -> Result<(ServerProcess, Pipes), Fault> {
    let program = if command == "pilotlight" {
        std::env::current_exe()
            .map_err(|e| Fault::unavailable(format!("the path of this program is unknown: {e}")))?
    } else {
        command.into()
    };
    let mut command_line = Command::new(program);
    for private in hidden.iter().map(String::as_str).chain(PRIVATE) {
        command_line.env_remove(private);
    }
    let mut child = command_line
        .args(args)
        .envs(start.environment())
        .envs(env)
        // an abort in llama.cpp must not attach a debugger
        .env("GGML_NO_BACKTRACE", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        // the service forwards a Ctrl-C at the terminal itself
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| Fault::unavailable(format!("{command} cannot be started: {e}")))?;
    let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(Fault::unavailable("the child has no pipes".to_owned()));
    };
    Ok((ServerProcess::Child(child), Pipes { output: Box::new(output), input: Box::new(input) }))
}

/// Lets the service manager start an engine of this program in a unit of its own.
///
/// # Errors
/// If there is no engine at the socket within [`UNIT_START_MAX`].
pub(super) async fn start_unit(
    socket: &Path,
    start: &EngineStart,
    args: &[String],
    env: &BTreeMap<String, String>,
) -> Result<(ServerProcess, Pipes), Fault> {
    let failed = |why: String| {
        let socket = socket.display();
        Fault::unavailable(format!(
            "no engine at {socket} ({ENGINES}): {why}; see the log of its unit, pilotlight-engine@"
        ))
    };
    let directory = std::env::current_dir().map_err(|error| failed(error.to_string()))?;
    let mut order = EngineOrder { args: args.to_vec(), env: start.environment(), directory };
    order.env.extend(std::env::var(LOG).map(|filter| (LOG.to_owned(), filter)));
    order.env.extend(env.clone());
    let greeted = async {
        let connection = UnixStream::connect(socket).await?;
        let (read, mut write) = connection.into_split();
        let mut line = serde_json::to_vec(&order)?;
        line.push(b'\n');
        if line.len() > ENGINE_ORDER_BYTES_MAX {
            return Err(std::io::Error::other("its arguments are too long"));
        }
        write.write_all(&line).await?;
        let mut read = BufReader::new(read);
        let mut greeting = String::new();
        let bound = ENGINE_ORDER_BYTES_MAX as u64;
        (&mut read).take(bound).read_line(&mut greeting).await?;
        if greeting.is_empty() {
            let why = "the connection was closed; the socket may have its MaxConnections";
            return Err(std::io::Error::other(why));
        }
        let greeting: EngineGreeting = serde_json::from_str(&greeting)?;
        Ok((greeting.pid, Pipes { output: Box::new(read), input: Box::new(write) }))
    };
    let (pid, pipes) = match timeout(UNIT_START_MAX, greeted).await {
        Ok(Ok(greeted)) => greeted,
        Ok(Err(error)) => return Err(failed(error.to_string())),
        Err(_) => return Err(failed(format!("no greeting within {UNIT_START_MAX:?}"))),
    };
    let process = Pid::from_raw(pid)
        .ok_or_else(|| failed(format!("{pid} is no id of a process")))
        .and_then(|pid| pidfd_open(pid, PidfdFlags::NONBLOCK).map_err(|e| failed(e.to_string())))?;
    Ok((ServerProcess::Unit(UnitProcess { process }), pipes))
}
