// What all programs share: the options every one has, and the one way out of main.
//
//   int main(int argc, char** argv) {
//     llatte::App app("tokenize", "Text in, token files out.", "tokenize book.txt --tokenizer DIR --out
//     book.ds"); std::string out; app.cli.add_option("--out", out, "token file to write"); return
//     app.run(argc, argv, [&] { ...; if (app.json) app.print_json({{"tokens", n}}); });
//   }
//
// Laws: exit code 0 done, 1 failed, 2 wrong usage; a failure is one sentence on stderr, "llatte-<app>: ...";
// stdout carries results only, and a result that could not be written is a failure. Over several ranks
// (over_ranks(), mpirun) rank 0 alone has a stdout, and a rank that fails ends all of them.
#pragma once
#include <omp.h>
#include <sched.h>
#include <unistd.h>
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>
#include "tensor/check.h"
#include "tensor/comm.h"
#include "tensor/cuda.h"

namespace llatte {

// Thrown by an app's body when the options make no sense together: exit code 2, not 1.
class UsageError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class App {
 public:
  App(const std::string& app_name, const std::string& what, const std::string& example)
      : cli(what, "llatte-" + app_name), name_(app_name) {
    cli.footer("\nExample:\n  " + example);
    cli.fallthrough();  // subcommands accept the common options too
    cli.add_option("--device", device_word_, "cpu or cuda[:N]")->capture_default_str();
    cli.add_option("--threads", threads_, "CPU threads (default: OMP_NUM_THREADS or all cores)")
        ->check(CLI::Range(1, 4096));
    cli.add_flag("--json", json, "the last line of stdout is one JSON object");
  }

  // This program's work is shared out over the processes that are started together. Before run().
  void over_ranks() { over_ranks_ = true; }
  Comm& comm() { return *comm_; }  // inside the body

  template <class Body>
  int run(int argc, char** argv, Body body) {
    std::signal(SIGPIPE, SIG_IGN);  // a reader that went away (| head) must not end a training run
    try {
      start_ranks();
      cli.parse(argc, argv);
      apply_common();
      body();
      std::cout.flush();
      LLATTE_CHECK(std::cout.good() || silent(), "stdout: the result could not be written");
      return 0;
    } catch (const CLI::Success& e) {
      return cli.exit(e);  // --help
    } catch (const CLI::ParseError& e) {
      return fail(2, std::string(e.what()) + " (see --help)");
    } catch (const UsageError& e) {
      return fail(2, std::string(e.what()) + " (see --help)");
    } catch (const std::bad_alloc&) {
      return fail(1, "out of memory");
    } catch (const std::exception& e) {
      return fail(1, e.what());
    }
  }

  // One line; text that is not UTF-8 (a path, say) is printed with U+FFFD rather than refused.
  void print_json(const nlohmann::ordered_json& object) const {
    std::cout << object.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << '\n';
  }

  CLI::App cli;
  Device device = Device::cpu;  // valid inside the body
  bool json = false;

 private:
  bool silent() const { return comm_ && comm_->rank() > 0; }

  void start_ranks() {
    if (over_ranks_) {
      comm_ = make_comm();
      comm_->on_failure([this](const std::string& sentence) { fail(1, sentence); });
    } else if (started_together())
      throw UsageError("this program is one process, but several were started; leave mpirun (or srun) out");
    if (silent()) std::cout.rdbuf(nullptr);
  }

  // Where many ranks fail alike, the first of them speaks, and the others wait to be ended.
  int fail(int code, const std::string& sentence) {
    if (!comm_ || comm_->size() == 1) return say(code, sentence);
    std::signal(SIGTERM, SIG_DFL);  // with which the launcher ends those that wait
    if (comm_->first_to_fail()) say(code, "rank " + std::to_string(comm_->rank()) + ": " + sentence);
    else std::this_thread::sleep_for(std::chrono::seconds(5));
    comm_->end_all(code);
    return code;
  }

  int say(int code, std::string sentence) const {
    std::replace(sentence.begin(), sentence.end(), '\n', ' ');
    std::cout.flush();
    std::cerr << "llatte-" + name_ + ": " + sentence + "\n" << std::flush;  // whole, among those of others
    return code;
  }

  void apply_common() {
    if (threads_ > 0) omp_set_num_threads(threads_);
    else if (comm_ && comm_->size() > 1 && !std::getenv("OMP_NUM_THREADS"))
      omp_set_num_threads(cores_of_a_rank(comm_->local_size()));
    if (device_word_ == "cpu") return;
    const std::string number = device_word_.substr(0, 5) == "cuda:" ? device_word_.substr(5) : "";
    const bool digits =
        !number.empty() && number.size() < 4 &&
        std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (device_word_ != "cuda" && !digits)
      throw UsageError("--device " + device_word_ + " is neither cpu nor cuda nor cuda:N");
    use_cuda(digits ? std::stoul(number) : comm_ ? size_t(comm_->local_rank()) : 0);
  }

  // Its share of the launcher's cores, or what the launcher has bound it to if that is less.
  static int cores_of_a_rank(int ranks_here) {
    cpu_set_t of_launcher;
    const bool known = sched_getaffinity(getppid(), sizeof of_launcher, &of_launcher) == 0;
    const int all = known ? CPU_COUNT(&of_launcher) : omp_get_num_procs();
    return std::max(1, std::min(omp_get_num_procs(), all / ranks_here));
  }

  // The process works on one GPU and sees only that one: the driver reads the variable at its first call.
  void use_cuda(size_t index) {
    const char* set = std::getenv("CUDA_VISIBLE_DEVICES");
    std::vector<std::string> ids = set ? CLI::detail::split(set, ',') : std::vector<std::string>{};
    LLATTE_CHECK(!set || index < ids.size(), "--device ", device_word_, ": CUDA_VISIBLE_DEVICES lists only ",
                 ids.size(), " devices");
    setenv("CUDA_VISIBLE_DEVICES", set ? ids[index].c_str() : std::to_string(index).c_str(), 1);
    LLATTE_CHECK(cuda::available(), "--device ", device_word_, ": ", cuda::why_unavailable());
    device = Device::cuda;
  }

  std::string name_, device_word_ = "cpu";
  int threads_ = 0;
  bool over_ranks_ = false;
  std::unique_ptr<Comm> comm_;
};

}  // namespace llatte
