// A library that is linked to libcuda itself.
extern int cuLaunchKernel(void);
void *plugin_launch(void) { return (void *)cuLaunchKernel; }
