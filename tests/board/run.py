"""The image under emulation: run.py IMAGE UPDATES GOOD_SYSTEM PROGRAM [--cuts N].

IMAGE has a model. UPDATES is a disk with good.raucb, silent.raucb (boots, and can't answer), foreign.raucb (signed
with another key) and broken.raucb (a byte differs). GOOD_SYSTEM is the id of the system in good.raucb. PROGRAM is
pilotlight for this machine, or for the board if this machine can run that.

Prints each step with its time; the summary is the last line, as JSON.
"""

import argparse
import json
import pathlib
import random
import subprocess
import tempfile
import time

from machine import App, Board, Broker

DEVICE = "board-1"
SHORT = {"max_tokens": 4, "deadline_ms": 600_000}
# a new system has this long to answer: the emulated board needs about 30 s
PROBE_MAX_S = 120
# prompts that the service lets wait
WAITING_MAX = 64


class Run:
    def __init__(self, folder, arguments):
        self.folder, self.arguments = folder, arguments
        self.figures = {}
        self.began = time.monotonic()
        self.keys()
        self.broker = Broker(folder)
        self.app = App(self.broker.port, DEVICE)
        self.board = Board(folder, arguments.image, self.broker.port, arguments.updates)

    def step(self, text, figure=None, value=None):
        now = time.monotonic()
        shown = "" if value is None else f": {value}"
        print(f"ok  {now - self.began:6.1f} s  {text}{shown}", flush=True)
        if figure:
            self.figures[figure] = value
        self.began = time.monotonic()

    def program(self, *arguments):
        done = subprocess.run(
            [self.arguments.program, *arguments], cwd=self.folder, capture_output=True, text=True,
            timeout=600, env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder),
                              "PILOTLIGHT_MQTT": f"mqtt://127.0.0.1:{getattr(self, 'broker', None) and self.broker.port or 1}"},
        )
        if done.returncode != 0:
            raise AssertionError(f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def keys(self):
        """A manager's key and the trust policy for it."""
        self.program("config", "keygen", "ops", "--no-password")
        (self.folder / "mcp.json").write_text(json.dumps(configuration("/var/lib/pilotlight/models/model.gguf")))
        trust = json.loads(self.program("config", "trust", "ops.pub", "--fleet", "test"))
        trust["trial"] = {"seconds": 5}
        (self.folder / "trust.json").write_text(json.dumps(trust))

    def boot(self, limit_s=300):
        """Starts the board. Returns the seconds until a prompt is answered."""
        self.app.forget_states()
        self.board.start()
        # before its first subscription the broker keeps nothing for the device
        self.app.state("status", is_online, limit_s)
        name = f"boot-{time.monotonic_ns()}"
        self.app.ask(name, prompt="Name a river.", **SHORT)
        reply = self.app.answered(name, limit_s)
        assert reply["status"] == "ok" and reply["decision"]["route"] == "local", reply
        return round(time.monotonic() - self.board.started, 1)

    # -- steps ------------------------------------------------------------------------------------------------

    def first_boot(self):
        board = self.board
        board.put("pilotlight.env", f"PILOTLIGHT_STATE=/var/lib/pilotlight\r\nPILOTLIGHT_DEVICE={DEVICE}\r\n"
                  "PILOTLIGHT_MQTT=mqtt://10.0.2.100:1883\r\nPILOTLIGHT_TRUST=/etc/pilotlight/trust.json\r\n")
        board.put("trust.json", (self.folder / "trust.json").read_text())
        board.put("authorized_keys", board.key.with_suffix(".pub").read_text())
        seconds = self.boot()
        self.step("first boot with settings from a laptop, until a prompt was answered over MQTT, s",
                  "first_boot_to_answer_s", seconds)
        board.until("systemctl is-active board-commit.service", "active")
        ready = int(board.ssh("systemctl show -P ActiveEnterTimestampMonotonic pilotlight.service"))
        began = int(board.ssh("systemctl show -P InactiveExitTimestampMonotonic pilotlight.service"))
        self.step("kernel until READY=1, s", "kernel_to_ready_s", round(ready / 1e6, 1))
        self.step("start of the service until READY=1, s", "service_to_ready_s", round((ready - began) / 1e6, 1))
        for name, command in (("service", "systemctl show -P MainPID pilotlight.service"),
                              ("engine", "grep -lz '^engine$' /proc/[0-9]*/cmdline | grep -o '[0-9]*'")):
            rss = board.ssh(f"awk '/^VmRSS/ {{print $2}}' /proc/$({command})/status")
            self.step(f"resident memory of the {name}, MB", f"{name}_resident_mb", int(rss) // 1024)
        assert board.ssh("cat /var/lib/board/update").endswith(": kept: there is no other")
        assert board.ssh("hostname") == DEVICE
        assert "squashfs" in board.ssh("findmnt -n -o FSTYPE /")
        failed = board.ssh("systemctl --failed --plain --no-legend")
        assert not failed, failed
        self.figures["variant"] = board.ssh("runuser -u pilotlight -- pilotlight doctor | sed -n 's/.*processor variant: //p'")
        self.step("processor variant", None, self.figures["variant"])
        size = int(board.ssh("df --output=size -m /var | tail -1"))
        assert size > 200, f"the data partition has not grown: {size} MiB"
        self.identity = board.ssh("cat /etc/machine-id")
        board.ssh("echo PROBE_MAX_S=%d >/var/lib/board/commit.env" % PROBE_MAX_S)

    def settings(self):
        """Another start with mistakes on the partition."""
        board = self.board
        board.stop()
        result = board.read("result.txt")
        assert result and result.startswith("In force"), result
        assert board.read("trust.json") is None, "a file that is in force is removed"
        board.put("pilotlight.env.txt", "PILOTLIGHT_DEVICE=other\n")
        board.put("mcp.json", '{"mcpServers": 7}')
        board.put("wifi.txt", "SSID=x\nPASSWORD=short\nCOUNTRY=de\n")
        seconds = self.boot()
        board.until("systemctl is-active board-commit.service", "active")
        assert board.ssh("hostname") == DEVICE
        self.step("orderly restart until a prompt was answered, s", "boot_to_answer_s", seconds)
        assert board.ssh("cat /etc/machine-id") == self.identity, "the id has changed"
        board.stop()
        result = board.read("result.txt")
        for part in ("Nothing was changed", 'was "pilotlight.env" meant', "PASSWORD must", "COUNTRY must"):
            assert part in result, result
        for name in ("pilotlight.env.txt", "wifi.txt"):
            board.tool("mdel", f"::{name}")
        self.boot()
        board.stop()
        assert "mcpServers" in board.read("result.txt"), board.read("result.txt")
        board.tool("mdel", "::mcp.json")
        self.boot()
        self.step("settings with mistakes change nothing, and each is named")

    def push(self):
        update = json.loads((self.folder / "mcp.json").read_text())
        update["mcpServers"]["local"] = {"command": "local"}
        update["pilotlight"]["tasks"] = {"greet": {"template": "Greet {{input}}."}}
        (self.folder / "mcp.json").write_text(json.dumps(update))
        self.program("config", "sign", "mcp.json", "--key", "ops.key", "--fleet", "test")
        self.program("config", "push", "update.signed", "--no-wait")
        kept = self.app.state("reported", lambda body: body.get("state") == "kept" and body.get("source") == "update")
        self.version = kept["version"]
        self.step("a signed configuration was pushed and kept, version", None, self.version)

    def slot(self):
        return self.board.ssh("sed 's/.*rauc.slot=\\([AB]\\).*/\\1/' /proc/cmdline")

    def mount_updates(self):
        self.board.ssh("mkdir -p /run/updates && "
                       "{ mountpoint -q /run/updates || mount -o ro LABEL=UPDATES /run/updates; }")

    def install(self, bundle):
        self.mount_updates()
        return self.board.ssh(f"rauc install /run/updates/{bundle} 2>&1", limit_s=900)

    def reboot(self):
        """A restart from within; returns when the board answers again and has decided on its system."""
        instance = self.board.ssh("cat /proc/sys/kernel/random/boot_id")
        self.board.ssh("systemctl reboot", check=False)
        self.settled(instance)

    def settled(self, instance):
        end = time.monotonic() + 600
        while time.monotonic() < end:
            try:
                now = self.board.ssh("cat /proc/sys/kernel/random/boot_id; systemctl is-active board-commit.service",
                                     check=False).split()
            except subprocess.TimeoutExpired:
                continue
            if len(now) == 2 and now[0] != instance and now[1] == "active":
                return
            time.sleep(2)
        raise AssertionError("the board has not come back")

    def updates(self):
        board = self.board
        assert self.slot() == "A"
        self.mount_updates()
        for bundle, why in (("foreign.raucb", "signature"), ("broken.raucb", "input/output error")):
            try:
                said = self.install(bundle)
            except AssertionError as error:
                assert why in str(error).lower(), error
            else:
                raise AssertionError(f"{bundle} was installed: {said}")
            self.step(f"refused: {bundle}")
        order = board.ssh("grub-editenv /boot/efi/grub/grubenv list")
        assert "ORDER=A B" in order, order

        began = time.monotonic()
        self.install("good.raucb")
        self.step("installed in slot B, s", "install_s", round(time.monotonic() - began))
        self.reboot()
        assert self.slot() == "B"
        assert board.ssh("cat /var/lib/board/update") == f"{self.arguments.good_system}: kept"
        assert board.ssh("cat /etc/machine-id") == self.identity
        self.answer()
        history = board.ssh("runuser -u pilotlight -- pilotlight config history | tail -1")
        assert history == f"runs: version {self.version}", history
        self.step("the update of the system answers and is kept, with the pushed configuration")

        self.install("silent.raucb")
        began = time.monotonic()
        self.reboot()
        assert self.slot() == "B", "the system that can't answer is left"
        said = board.ssh("cat /var/lib/board/update")
        assert said.endswith("rolled back: it does not answer"), said
        self.answer()
        self.step(f"an update that boots and can't answer (asked for {PROBE_MAX_S} s) is rolled back, s", "rollback_s",
                  round(time.monotonic() - began))

    def answer(self):
        name = f"ask-{time.monotonic_ns()}"
        self.app.ask(name, prompt="Name a river.", **SHORT)
        reply = self.app.answered(name)
        assert reply["status"] == "ok", reply

    def cut_in_an_update(self):
        board = self.board
        before = self.slot()
        target = {"A": "B", "B": "A"}[before]
        self.mount_updates()
        board.ssh("nohup rauc install /run/updates/good.raucb >/dev/null 2>&1 &")
        # RAUC marks the slot that it writes
        board.until("grub-editenv /boot/efi/grub/grubenv list", f"{target}_OK=0", 120)
        time.sleep(5)
        assert "installing" in board.ssh("busctl get-property de.pengutronix.rauc / de.pengutronix.rauc.Installer Operation")
        board.cut()
        self.boot()
        assert self.slot() == before
        self.step("a power cut during an update: the system before answers")
        self.install_again(before)

    def install_again(self, before):
        board = self.board
        self.install("good.raucb")
        self.reboot()
        assert self.slot() != before
        assert board.ssh("cat /var/lib/board/update") == f"{self.arguments.good_system}: kept"
        self.step("the same update again: kept")

    def cuts(self, times):
        """The power is cut while prompts are answered."""
        chance = random.Random(1)
        # if none is answered between the cuts, all wait at once; more are refused as busy
        per_cut = max(1, min(4, WAITING_MAX // times))
        outages, asked = [], 0
        for n in range(times):
            for _ in range(per_cut):
                asked += 1
                self.app.ask(f"cut-{asked}", prompt=f"Say the number {asked}.", max_tokens=24, deadline_ms=3_600_000)
            time.sleep(chance.uniform(0.5, 20))
            self.board.cut()
            self.app.forget_states()
            self.board.start()
            began = time.monotonic()
            self.app.state("status", is_online)
            outages.append(time.monotonic() - began)
            # some cuts come early in the next start
            if n % 5 == 4:
                time.sleep(chance.uniform(0, 10))
                self.board.cut()
                self.board.start()
        names = [f"cut-{n + 1}" for n in range(asked)]
        end = time.monotonic() + 1200
        while time.monotonic() < end and any(name not in self.app.replies for name in names):
            time.sleep(1)
        # a second reply would follow at once
        time.sleep(10)
        lost = [name for name in names if name in self.app.acknowledged and name not in self.app.replies]
        answered = {name: self.app.replies[name] for name in names if name in self.app.replies}
        twice = {name: sorted({reply.get("text") or "" for reply in replies}) for name, replies in answered.items()
                 if len({reply.get("text") for reply in replies}) > 1}
        ends = {}
        for replies in answered.values():
            end = replies[0]["status"]
            ends[end] = ends.get(end, 0) + 1
        self.figures["cuts"] = {"cuts": times, "prompts": asked, "acknowledged": len(self.app.acknowledged & set(names)),
                                 "lost": len(lost), "different_texts": len(twice),
                                 "ends": ends, "median_s_to_online": round(sorted(outages)[len(outages) // 2], 1)}
        self.step("power cuts while prompts are answered", None, self.figures["cuts"])
        assert not lost, lost
        assert not twice, twice
        assert list(ends) == ["ok"], ends

    def flash(self, prompts):
        """Bytes that the medium is asked to write for prompts."""
        def written():
            return int(self.board.ssh("sync; awk '$3 == \"vda\" {print $10}' /proc/diskstats")) * 512
        time.sleep(30)
        before, began = written(), time.monotonic()
        time.sleep(60)
        idle = (written() - before) / (time.monotonic() - began)
        before, began = written(), time.monotonic()
        names = [f"flash-{n}" for n in range(prompts)]
        for name in names:
            self.app.ask(name, prompt="Name a river.", max_tokens=1, deadline_ms=600_000)
            self.app.answered(name)
        per_prompt = (written() - before - idle * (time.monotonic() - began)) / prompts
        self.step(f"written to flash: idle {idle:.0f} B/s; per 1,000 prompts, KiB (from {prompts})",
                  "flash_kib_per_1000_prompts", round(per_prompt * 1000 / 1024))
        self.figures["flash_idle_bytes_per_s"] = round(idle)

    def everything(self):
        self.first_boot()
        self.settings()
        self.push()
        self.flash(self.arguments.prompts)
        self.updates()
        self.cut_in_an_update()
        self.cuts(self.arguments.cuts)
        self.board.stop()
        self.step("stopped")
        print(json.dumps(self.figures))

    def end(self):
        if self.board.process and self.board.process.poll() is None:
            self.board.cut()
        self.app.client.loop_stop()
        self.broker.stop()


def is_online(status):
    return status.get("state") == "online"


def configuration(model):
    return {
        "mcpServers": {"local": {"command": "pilotlight", "args": ["engine", "--gguf", model, "--name", "local"]}},
        "pilotlight": {"version": 1, "servers": {"local": {"role": "model", "reach": "device"}}},
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("image")
    parser.add_argument("updates")
    parser.add_argument("good_system")
    parser.add_argument("program")
    parser.add_argument("--cuts", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=pathlib.Path(arguments.image).parent) as folder:
        run = Run(pathlib.Path(folder), arguments)
        try:
            run.everything()
        except Exception:
            console = pathlib.Path(folder) / "console"
            if console.exists():
                print(console.read_text(errors="replace")[-6000:])
            raise
        finally:
            run.end()


if __name__ == "__main__":
    main()
