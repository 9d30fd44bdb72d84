//! `engine-unit`: the process that the service manager starts for a connection to the socket of engines. It
//! reads what it is to become, and becomes that engine.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, ensure};
use rustix::net::sockopt::socket_acceptconn;

use super::DONE;
use crate::backends::process::{EngineGreeting, EngineOrder};
use crate::limits::engine::ENGINE_ORDER_BYTES_MAX;

/// Reads an order and greets, on the connection that is standard input and output, then replaces this process
/// by the engine.
///
/// # Errors
/// If the order can't be read or is for no engine, or the program can't be executed.
pub(super) fn run() -> anyhow::Result<u8> {
    // a restart of the unit, which follows one of the service: there is no connection
    if socket_acceptconn(std::io::stdin()).unwrap_or(false) {
        return Ok(DONE);
    }
    // standard input itself would read ahead
    let input = std::io::stdin().as_fd().try_clone_to_owned()?;
    let order = read_order(File::from(input))?;
    let mut output = std::io::stdout();
    let mut greeting = serde_json::to_vec(&EngineGreeting { pid: nix::unistd::getpid().as_raw() })?;
    greeting.push(b'\n');
    output.write_all(&greeting).and_then(|()| output.flush()).context("the service is gone")?;
    let program = std::env::current_exe().context("the path of this program is unknown")?;
    let error = Command::new(program)
        .args(&order.args)
        .envs(&order.env)
        .current_dir(&order.directory)
        // an abort in llama.cpp must not attach a debugger
        .env("GGML_NO_BACKTRACE", "1")
        .exec();
    Err(error).context("the engine cannot be started")
}

/// The first line, and not a byte more: the next ones are the engine's.
fn read_order(mut input: impl Read) -> anyhow::Result<EngineOrder> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    loop {
        match input.read(&mut byte) {
            Ok(0) => break,
            Ok(_) if byte == *b"\n" => break,
            Ok(_) => line.extend(byte),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("the order cannot be read"),
        }
        ensure!(
            line.len() < ENGINE_ORDER_BYTES_MAX,
            "an order has at most {ENGINE_ORDER_BYTES_MAX} bytes"
        );
    }
    ensure!(!line.is_empty(), "no order came: this command is for the unit pilotlight-engine@");
    let order: EngineOrder = serde_json::from_slice(&line).context("the order")?;
    ensure!(
        order.args.first().is_some_and(|command| command == "engine"),
        "only engines of this program are started"
    );
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_read_to_its_line_end_and_no_further() {
        let bytes =
            b"{\"args\": [\"engine\", \"--scripted\", \"x\"], \"env\": {\"A\": \"b\"}, \"directory\": \"/\"}\nnext\n";
        let mut rest = &bytes[..];
        let order = read_order(&mut rest).unwrap();
        assert_eq!(order.args, ["engine", "--scripted", "x"]);
        assert_eq!(order.env.get("A").map(String::as_str), Some("b"));
        assert_eq!(rest, b"next\n");
    }

    #[test]
    fn other_commands_and_endless_lines_are_refused() {
        let other = b"{\"args\": [\"serve\"], \"env\": {}, \"directory\": \"/\"}\n";
        assert!(read_order(&other[..]).unwrap_err().to_string().contains("only engines"));
        assert!(read_order(&b""[..]).unwrap_err().to_string().contains("pilotlight-engine@"));
        let endless = vec![b' '; ENGINE_ORDER_BYTES_MAX + 1];
        assert!(read_order(&endless[..]).unwrap_err().to_string().contains("at most"));
        assert!(read_order(&b"{\"args\": []}\n"[..]).is_err());
    }
}
