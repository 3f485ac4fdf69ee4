// Faults that are armed at start (EMULATED_DEVICE_FAULT) or later, from Python.
//
//   fault,fault…     fault = kind[:command][@passed][*times][#device]
//
//   allocation       an allocation is refused, as if memory were full
//   stuck            the stream of the command takes no work any more, so waiting for it takes for ever
//   lost             work, waiting for work and allocations are errors from now on; what only keeps the books still succeeds
//   gone             every call is an error from now on: Paddle ends the process as soon as it frees something
//   launch_error     the command is refused when it is launched
//   kernel_error     the command fails when it runs; who waits for the stream is told
//   nan              the command leaves NaN in the floats that it writes; a copy leaves bytes of 0xff
//
// A command is a kernel by its name, or copy_h2d, copy_d2h, copy_d2d; without one, any. `passed` commands (or allocations)
// go well first, then `times` of them (all, if not said) are hit. `device` is the logical number; without one, all devices.
#pragma once
#include <string>

namespace emulated {

struct CommandFault {
  bool stuck = false;
  bool lost = false;
  bool gone = false;
  bool launch_error = false;
  bool kernel_error = false;
  bool nan = false;
};

// Adds faults. Throws std::runtime_error where the text is not of the form above; then none is added.
void arm(const std::string& text);
void disarm();
bool allocation_fails(int device);
CommandFault on_command(int device, const std::string& command);

}  // namespace emulated
