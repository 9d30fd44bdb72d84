//! What a sandboxed engine process is denied: tries it, for `doctor` and for tests.

use std::fs::File;
use std::io;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::process::{Command, Stdio};

use serde_json::json;

/// Tries what an engine may not do, and prints a JSON object with one member for each: whether it was
/// denied.
///
/// # Errors
/// If it can't be printed.
pub(super) fn print() -> anyhow::Result<()> {
    let denied = json!({
        "read": is_denied(File::open("/etc/passwd")),
        "write": is_denied(File::create(std::env::temp_dir().join("pilotlight-sandbox"))),
        "tcp": is_denied(TcpListener::bind("127.0.0.1:0")),
        "udp": is_denied(UdpSocket::bind("127.0.0.1:0")),
        "unix": is_denied(UnixDatagram::unbound()),
        "program": is_denied(Command::new("/bin/true").stdout(Stdio::null()).spawn()),
    });
    print_line!("{denied}");
    Ok(())
}

fn is_denied<T>(result: io::Result<T>) -> bool {
    result.is_err_and(|error| error.kind() == io::ErrorKind::PermissionDenied)
}
